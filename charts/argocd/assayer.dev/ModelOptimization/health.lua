-- Health of a ModelOptimization for Argo CD: what the phase says of the generation that was applied.
local status = obj.status or {}
local phase = status.phase or ""
local message = ""
for _, condition in ipairs(status.conditions or {}) do
  if condition.type == "Ready" then
    message = condition.message or ""
  end
end
if status.observedGeneration == nil or status.observedGeneration ~= obj.metadata.generation then
  return {status = "Progressing", message = "waiting for the operator to look at generation " .. tostring(obj.metadata.generation)}
end
local healthy = {Succeeded = true}
local degraded = {Rejected = true, Failed = true}
local health = "Progressing"
if healthy[phase] then
  health = "Healthy"
elseif degraded[phase] then
  health = "Degraded"
elseif obj.spec ~= nil and obj.spec.suspend then
  health = "Suspended"
end
return {status = health, message = phase .. ": " .. message}
