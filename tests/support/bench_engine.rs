//! Times the built-in engine as the agent calls it: for `scripts/bench-engine`, which reads microseconds.
//!
//! usage: bench_engine PROGRAM DIR SUBNET LAYER COMMAND…
//!
//! PROGRAM is the gitopsd whose shims run, DIR is for its state, LAYER is the root file system. On standard input come
//! lines of `start N`, `exec N`, `stop N`, `remove N`, N being a generation; each is answered by a line: microseconds, or
//! what went wrong. The line `end` is the last one.
#![allow(clippy::print_stdout, reason = "this program's answers")]

use std::collections::BTreeMap;
use std::error::Error;
use std::io::{BufRead as _, Write as _};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use gitopsd::engine::native::net::BridgeNetwork;
use gitopsd::engine::native::{NativeConfig, NativeEngine};
use gitopsd::engine::{ContainerRequest, Engine, EngineError, ImageConfig, LocalImage};
use gitopsd::types::{Digest, InstanceId, PinnedImage, ServiceSpec};

const INSTANCE: &str = "gbench";

/// Time for a command inside, and from the stop signal to SIGKILL.
const LIMIT: Duration = Duration::from_secs(20);

struct Bench {
    engine: NativeEngine,
    network: Arc<BridgeNetwork>,
    subnet: Ipv4Addr,
    layer: PathBuf,
    command: Vec<String>,
}

impl Bench {
    fn new(args: &[String]) -> Result<Self, Box<dyn Error>> {
        let [program, dir, subnet, layer, command @ ..] = args else {
            return Err("usage: bench_engine PROGRAM DIR SUBNET LAYER COMMAND…".into());
        };
        let subnet: Ipv4Addr = subnet.parse()?;
        let run_dir = Path::new(dir).join("run");
        let network = Arc::new(BridgeNetwork::new(INSTANCE, (subnet, 24), &run_dir).map_err(told)?);
        let config = NativeConfig {
            state_dir: Path::new(dir).join("state"),
            run_dir,
            instance: INSTANCE.to_owned(),
            program: program.into(),
        };
        let engine = NativeEngine::new(config, network.clone()).map_err(told)?;
        Ok(Self { engine, network, subnet, layer: layer.into(), command: command.to_vec() })
    }

    fn request(&self, id: InstanceId) -> Result<ContainerRequest, Box<dyn Error>> {
        let digest: Digest = format!("sha256:{}", "0".repeat(64)).parse()?;
        let image = PinnedImage { reference: "bench.example/busybox:1".parse()?, digest: digest.clone() };
        let mut spec = ServiceSpec::new(image);
        spec.command = Some(self.command.clone());
        let address = Ipv4Addr::from_bits(self.subnet.to_bits() + 2 + u32::try_from(id.generation.0 % 200)?);
        Ok(ContainerRequest {
            joins: None,
            id,
            spec,
            image: LocalImage { digest, layers: vec![self.layer.clone()], config: ImageConfig::default() },
            address,
            hosts: BTreeMap::new(),
            commit: "0".repeat(40).parse()?,
            one_shot: None,
        })
    }

    fn act(&self, line: &str) -> Result<Duration, Box<dyn Error>> {
        let (verb, generation) = line.split_once(' ').ok_or("not a command")?;
        let id: InstanceId = format!("bench.{generation}").parse()?;
        let request = self.request(id.clone())?;
        let begun = Instant::now();
        match verb {
            "start" => self.engine.start(&request).map_err(told)?,
            "stop" => self.engine.stop(&id, LIMIT).map_err(told)?,
            "remove" => self.engine.remove(&id).map_err(told)?,
            "exec" => {
                let output = self.engine.exec(&id, &["/bin/true".to_owned()], LIMIT).map_err(told)?;
                if output.code != Some(0) {
                    return Err(format!("exec: {output:?}").into());
                }
            }
            _ => return Err("not a command".into()),
        }
        Ok(begun.elapsed())
    }

    fn close(&self) -> Result<(), EngineError> {
        for container in self.engine.observe()? {
            self.engine.remove(&container.id)?;
        }
        self.engine.teardown();
        self.network.teardown()
    }
}

fn told(error: EngineError) -> Box<dyn Error> {
    error.to_refusal().message.into()
}

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let bench = Bench::new(&args)?;
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        if line == "end" {
            break;
        }
        match bench.act(&line) {
            Ok(time) => println!("{}", time.as_micros()),
            Err(error) => println!("{error}"),
        }
        std::io::stdout().flush()?;
    }
    bench.close().map_err(told)
}
