-- Health of a PromotionPolicy for Argo CD: its condition Ready, of the generation that was applied.
local status = obj.status or {}
if status.observedGeneration == nil or status.observedGeneration ~= obj.metadata.generation then
  return {status = "Progressing", message = "waiting for the operator to look at generation " .. tostring(obj.metadata.generation)}
end
local byReady = {True = "Healthy", False = "Degraded"}
for _, condition in ipairs(status.conditions or {}) do
  if condition.type == "Ready" then
    return {status = byReady[condition.status] or "Progressing", message = condition.message or ""}
  end
end
return {status = "Progressing", message = "there is no condition Ready yet"}
