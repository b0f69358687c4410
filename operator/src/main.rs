//! Entry point of the operator: parses flags and wires parts. Decides nothing.

use std::io::Write as _;
use std::process::ExitCode;

use assayer_operator::config::Config;
use assayer_operator::telemetry::{self, Telemetry};
use assayer_operator::{client, keygen, runtime};
use clap::{Args, Parser, Subcommand, ValueEnum};

/// Change control for optimized models: the operator.
#[derive(Parser)]
#[command(name = "assayer-operator", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    telemetry: Telemetry,
}

#[derive(Subcommand)]
enum Command {
    /// Runs the controllers.
    Run(Box<Config>),
    /// Prints every custom resource definition.
    Crds(Crds),
    /// Makes the signing Secret if there is none. Never changes one that exists.
    Keygen(Keygen),
}

#[derive(Args)]
struct Crds {
    /// How they are written.
    #[arg(long, short, value_enum, default_value_t = Output::Yaml)]
    output: Output,
}

#[derive(Clone, Copy, ValueEnum)]
enum Output {
    /// YAML documents.
    Yaml,
    /// One JSON List.
    Json,
}

#[derive(Args)]
struct Keygen {
    /// Name of the Secret.
    #[arg(long, env = "ASSAYER_SIGNING_SECRET", default_value = "assayer-signing-key")]
    secret: String,
    /// Namespace of the Secret.
    #[arg(long, env = "POD_NAMESPACE", default_value = "assayer-system")]
    namespace: String,
}

#[tokio::main]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    match start(cli).await {
        Ok(code) => code,
        Err(error) => {
            complain(&error);
            ExitCode::FAILURE
        }
    }
}

async fn start(cli: Cli) -> anyhow::Result<ExitCode> {
    rustls::crypto::ring::default_provider()
        .install_default()
        .map_err(|_| anyhow::anyhow!("another TLS provider was installed first"))?;
    telemetry::start(&cli.telemetry)?;
    match cli.command {
        Command::Run(config) => runtime::run(*config).await,
        Command::Crds(crds) => print_crds(crds.output),
        Command::Keygen(keygen) => make_key(&keygen).await,
    }
}

/// The error and its causes: into the log, or straight to standard error where there is no log yet.
#[expect(clippy::print_stderr, reason = "without a log there is nothing else")]
fn complain(error: &anyhow::Error) {
    if tracing::dispatcher::has_been_set() {
        let causes: Vec<String> = error.chain().skip(1).map(ToString::to_string).collect();
        tracing::error!(?causes, "{error}");
    } else {
        eprintln!("{error:#}");
    }
}

fn print_crds(output: Output) -> anyhow::Result<ExitCode> {
    let all = assayer_crds::all();
    let mut out = std::io::stdout().lock();
    match output {
        Output::Yaml => {
            for definition in &all {
                writeln!(out, "---\n{}", serde_saphyr::to_string(definition)?.trim_end())?;
            }
        }
        Output::Json => {
            let list = serde_json::json!({"apiVersion": "v1", "kind": "List", "items": all});
            writeln!(out, "{}", serde_json::to_string_pretty(&list)?)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn make_key(keygen: &Keygen) -> anyhow::Result<ExitCode> {
    let client = client::plain(client::configure(kube::Config::infer().await?))?;
    let made = keygen::ensure(&client, &keygen.namespace, &keygen.secret).await?;
    tracing::info!(secret = keygen.secret, namespace = keygen.namespace, outcome = ?made, "signing key");
    Ok(ExitCode::SUCCESS)
}
