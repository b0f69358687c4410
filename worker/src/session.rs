//! ONNX Runtime, loaded from a library file, and sessions that take and give plain tensors.
//!
//! A thin wrapper: decides nothing about models. Only models that went through [`crate::onnx::check`] belong here.

use crate::onnx::{self, Data, ElementType, Model, Tensor};
use ort::{
    environment::Environment,
    ep::{self, ExecutionProviderDispatch},
    session::{
        Session as OrtSession, SessionInputValue,
        builder::{GraphOptimizationLevel, SessionBuilder},
    },
    value::{DynValue, PrimitiveTensorElementType, TensorElementType, ValueType},
};
use std::{
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

/// Where ONNX Runtime looks for the files of a model that it is handed in memory.
const EXTERNAL_FOLDER: &str = "session.model_external_initializers_file_folder_path";

/// Why ONNX Runtime could not be used, in its own words.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Neither a path nor the variable says where the library is.
    #[error("no ONNX Runtime library: set ORT_DYLIB_PATH to the path of libonnxruntime.so")]
    NoLibrary,
    /// The library was already loaded from another path: a process holds one.
    #[error("ONNX Runtime is already loaded from {loaded}; {asked} cannot be loaded too")]
    OtherLibrary {
        /// Loaded before.
        loaded: PathBuf,
        /// Asked for now.
        asked: PathBuf,
    },
    /// The library does not load.
    #[error("cannot load ONNX Runtime from {path}: {reason}")]
    Load {
        /// The library.
        path: PathBuf,
        /// The reason.
        reason: String,
    },
    /// A call failed.
    #[error("ONNX Runtime cannot {action}: {reason}")]
    Call {
        /// What was tried.
        action: &'static str,
        /// ONNX Runtime's own message.
        reason: String,
    },
    /// A tensor of a type that cannot be handed over.
    #[error("{element:?} tensors cannot be {action} ({name})")]
    Element {
        /// Type of the elements.
        element: String,
        /// Direction.
        action: &'static str,
        /// Name of the input or output.
        name: String,
    },
}

fn call<E: std::fmt::Display>(action: &'static str) -> impl FnOnce(E) -> Error {
    move |error| Error::Call {
        action,
        reason: error.to_string(),
    }
}

/// The loaded library. Cheap to clone; one per process.
#[derive(Debug, Clone)]
pub struct Runtime {
    environment: Environment,
    path: PathBuf,
}

static LOADED: Mutex<Option<Runtime>> = Mutex::new(None);

impl Runtime {
    /// Loads the library at `path`, or at `ORT_DYLIB_PATH`. Asking again for the same library gives the same one.
    pub fn load(path: Option<&Path>) -> Result<Self, Error> {
        let path = path
            .map(Path::to_owned)
            .or_else(|| std::env::var_os("ORT_DYLIB_PATH").map(PathBuf::from));
        let path = path
            .filter(|path| !path.as_os_str().is_empty())
            .ok_or(Error::NoLibrary)?;
        let mut loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(runtime) = loaded.as_ref() {
            if runtime.path == path {
                return Ok(runtime.clone());
            }
            return Err(Error::OtherLibrary {
                loaded: runtime.path.clone(),
                asked: path,
            });
        }
        let failed = |reason: String| Error::Load {
            path: path.clone(),
            reason,
        };
        let environment = ort::init_from(&path).map_err(|error| failed(error.to_string()))?;
        let environment = environment
            .with_telemetry(false)
            .build()
            .map_err(|error| failed(error.to_string()))?;
        environment.set_log_level(ort::logging::LogLevel::Error);
        let runtime = Self { environment, path };
        *loaded = Some(runtime.clone());
        Ok(runtime)
    }

    /// Version, commit and compile flags, as the library says.
    pub fn build_info(&self) -> &'static str {
        ort::info()
    }

    /// The file that the library was loaded from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A session on a model file and the external data beside it.
    pub fn open(&self, model: &Path, options: &Options) -> Result<Session, Error> {
        let mut builder = self.builder(options)?;
        builder
            .commit_from_file(model)
            .map(Session)
            .map_err(call("load the model"))
    }

    /// A session on a decoded model. Weights that still lie in files beside it are mapped from there and used where they are, so that
    /// a model of any size costs no second copy.
    pub fn open_model(&self, model: &Model, options: &Options) -> Result<Session, Error> {
        let Some(folder) = model.beside.folder() else {
            return self.open_bytes(&onnx::to_bytes(model), options);
        };
        let text = folder.to_str().ok_or_else(|| Error::Call {
            action: "find weights beside the model",
            reason: format!("{} is not UTF-8", folder.display()),
        })?;
        let bytes = onnx::to_bytes_beside(model).map_err(call("be handed the model"))?;
        self.builder(options)?
            .with_config_entry(EXTERNAL_FOLDER, text)
            .map_err(call("set up a session"))?
            .commit_from_memory(&bytes)
            .map(Session)
            .map_err(call("load the model"))
    }

    /// A session on a model in memory.
    pub fn open_bytes(&self, model: &[u8], options: &Options) -> Result<Session, Error> {
        let mut builder = self.builder(options)?;
        builder
            .commit_from_memory(model)
            .map(Session)
            .map_err(call("load the model"))
    }

    fn builder(&self, options: &Options) -> Result<SessionBuilder, Error> {
        let level = match options.optimize {
            Optimize::Nothing => GraphOptimizationLevel::Disable,
            Optimize::Everything => GraphOptimizationLevel::All,
        };
        let build = || -> ort::Result<_> {
            let mut builder = OrtSession::builder(&self.environment)?
                .with_optimization_level(level)?
                .with_intra_threads(options.threads)?
                .with_inter_threads(1)?
                .with_intra_op_spinning(false)?
                .with_prepacking(options.prepack)?;
            if let Some(path) = &options.optimized_model {
                builder = builder.with_optimized_model_path(path)?;
            }
            match options.provider.dispatch() {
                Some(provider) => Ok(builder.with_execution_providers([provider])?),
                None => Ok(builder),
            }
        };
        build().map_err(call("set up a session"))
    }
}

/// How a session is built.
#[derive(Debug, Clone)]
pub struct Options {
    /// Threads inside one operator.
    pub threads: usize,
    /// ONNX Runtime's own graph optimizations.
    pub optimize: Optimize,
    /// Where it runs. A provider that is not there is an error, never a silent fallback.
    pub provider: Provider,
    /// Whether weights are copied into the order that kernels read fastest. A single run is over sooner without, and takes less memory.
    pub prepack: bool,
    /// Where ONNX Runtime leaves its optimized graph, for those who want to see what was fused.
    pub optimized_model: Option<PathBuf>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            threads: 1,
            optimize: Optimize::Everything,
            provider: Provider::Cpu,
            prepack: true,
            optimized_model: None,
        }
    }
}

/// ONNX Runtime's own graph optimizations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Optimize {
    /// The graph runs as it is written.
    Nothing,
    /// All of them, as in production.
    Everything,
}

/// An execution provider.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Provider {
    /// The CPU.
    Cpu,
    /// NVIDIA GPUs by CUDA.
    Cuda,
    /// NVIDIA GPUs by TensorRT.
    TensorRt,
}

/// As the schema spells it.
impl std::fmt::Display for Provider {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Cpu => "CPU",
            Self::Cuda => "CUDA",
            Self::TensorRt => "TensorRT",
        })
    }
}

impl Provider {
    fn dispatch(self) -> Option<ExecutionProviderDispatch> {
        match self {
            Self::Cpu => None,
            Self::Cuda => Some(ep::CUDA::default().build().error_on_failure()),
            Self::TensorRt => Some(ep::TensorRT::default().build().error_on_failure()),
        }
    }
}

/// A loaded model.
#[derive(Debug)]
pub struct Session(OrtSession);

/// One output of a run.
#[derive(Debug)]
pub struct Output<'s> {
    /// Name.
    pub name: &'s str,
    /// Dimensions.
    pub shape: Vec<usize>,
    value: &'s DynValue,
}

impl Session {
    /// Names of the inputs that a run needs.
    pub fn inputs(&self) -> Vec<&str> {
        self.0.inputs().iter().map(ort::value::Outlet::name).collect()
    }

    /// Names of the outputs that a run gives.
    pub fn outputs(&self) -> Vec<&str> {
        self.0.outputs().iter().map(ort::value::Outlet::name).collect()
    }

    /// Runs once. Each output is lent to `each`; all are freed afterwards.
    pub fn run<E: From<Error>>(
        &mut self,
        inputs: &[Tensor],
        each: impl FnMut(Output<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        self.run_whole(inputs, |outputs| outputs.into_iter().try_for_each(each))
    }

    /// Runs once. The outputs are lent to `all` together and freed afterwards.
    pub fn run_whole<E: From<Error>>(
        &mut self,
        inputs: &[Tensor],
        all: impl FnOnce(Vec<Output<'_>>) -> Result<(), E>,
    ) -> Result<(), E> {
        let values: Vec<(&str, SessionInputValue<'_>)> = inputs
            .iter()
            .map(|tensor| Ok((tensor.name.as_str(), to_value(tensor)?)))
            .collect::<Result<_, Error>>()?;
        let outputs = self.0.run(values).map_err(call("run the model"))?;
        let outputs: Vec<_> = (&outputs).into_iter().collect();
        let lent = outputs.iter().map(|(name, value)| {
            let value: &DynValue = value;
            let shape = match value.dtype() {
                ValueType::Tensor { shape, .. } => shape.iter().map(|&dim| usize::try_from(dim).unwrap_or(0)).collect(),
                _ => Vec::new(),
            };
            Output { name, shape, value }
        });
        all(lent.collect())
    }
}

impl Output<'_> {
    /// Elements as 32-bit floats; none if they are of another type.
    pub fn floats(&self) -> Option<&[f32]> {
        self.value.try_extract_tensor::<f32>().ok().map(|(_, values)| values)
    }

    /// A copy of the output. Errors for types other than numbers and booleans of 8 to 64 bits.
    pub fn to_tensor(&self) -> Result<Tensor, Error> {
        use TensorElementType as T;
        let ValueType::Tensor { ty, .. } = self.value.dtype() else {
            return Err(self.unreadable("not a tensor"));
        };
        let (element, bytes) = match ty {
            T::Float32 => (ElementType::Float, self.bytes(|v: f32| v.to_le_bytes())?),
            T::Float64 => (ElementType::Double, self.bytes(|v: f64| v.to_le_bytes())?),
            T::Uint8 => (ElementType::Uint8, self.bytes(|v: u8| [v])?),
            T::Int8 => (ElementType::Int8, self.bytes(|v: i8| v.to_le_bytes())?),
            T::Uint16 => (ElementType::Uint16, self.bytes(|v: u16| v.to_le_bytes())?),
            T::Int16 => (ElementType::Int16, self.bytes(|v: i16| v.to_le_bytes())?),
            T::Uint32 => (ElementType::Uint32, self.bytes(|v: u32| v.to_le_bytes())?),
            T::Int32 => (ElementType::Int32, self.bytes(|v: i32| v.to_le_bytes())?),
            T::Uint64 => (ElementType::Uint64, self.bytes(|v: u64| v.to_le_bytes())?),
            T::Int64 => (ElementType::Int64, self.bytes(|v: i64| v.to_le_bytes())?),
            T::Bool => (ElementType::Bool, self.bytes(|v: bool| [u8::from(v)])?),
            other => return Err(self.unreadable(&format!("{other:?}"))),
        };
        Tensor::new(self.name, element, &self.shape, bytes).map_err(call("give an output"))
    }

    fn unreadable(&self, element: &str) -> Error {
        Error::Element {
            element: element.to_owned(),
            action: "read",
            name: self.name.to_owned(),
        }
    }

    fn bytes<T, const N: usize>(&self, encode: impl Fn(T) -> [u8; N]) -> Result<Vec<u8>, Error>
    where
        T: PrimitiveTensorElementType + Copy,
    {
        let (_, values) = self.value.try_extract_tensor::<T>().map_err(call("give an output"))?;
        Ok(values.iter().flat_map(|&value| encode(value)).collect())
    }
}

/// Hands a tensor over: its elements are copied once, into memory aligned for their type.
fn to_value(tensor: &Tensor) -> Result<SessionInputValue<'static>, Error> {
    use ElementType as T;
    let refused = || Error::Element {
        element: format!("{:?}", tensor.element),
        action: "given to a session",
        name: tensor.name.clone(),
    };
    if matches!(tensor.data, Data::Strings(_)) {
        return Err(refused());
    }
    Ok(match tensor.element {
        T::Float => value(tensor, f32::from_le_bytes)?,
        T::Double => value(tensor, f64::from_le_bytes)?,
        T::Uint8 => value(tensor, u8::from_le_bytes)?,
        T::Int8 => value(tensor, i8::from_le_bytes)?,
        T::Uint16 => value(tensor, u16::from_le_bytes)?,
        T::Int16 => value(tensor, i16::from_le_bytes)?,
        T::Uint32 => value(tensor, u32::from_le_bytes)?,
        T::Int32 => value(tensor, i32::from_le_bytes)?,
        T::Uint64 => value(tensor, u64::from_le_bytes)?,
        T::Int64 => value(tensor, i64::from_le_bytes)?,
        T::Bool => value(tensor, |byte: [u8; 1]| byte[0] != 0)?,
        _ => return Err(refused()),
    })
}

fn value<T, const N: usize>(tensor: &Tensor, decode: impl Fn([u8; N]) -> T) -> Result<SessionInputValue<'static>, Error>
where
    T: PrimitiveTensorElementType + std::fmt::Debug + Clone + 'static,
{
    let data: Vec<T> = tensor
        .bytes()
        .as_chunks::<N>()
        .0
        .iter()
        .map(|bytes| decode(*bytes))
        .collect();
    let value = ort::value::Tensor::from_array((tensor.dims.clone(), data)).map_err(call("take an input"))?;
    Ok(value.into())
}
