//! `gitopsd pack`: an image, from wherever it is, as an archive that hosts read by ranges. Needs no agent and no state:
//! what is under way is beside the file that is asked for.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use rustix::fs::{CWD, RenameFlags, renameat_with};

use tokio::signal::unix::{SignalKind, signal};

use super::progress::PullBar;
use super::{Failure, args, pull, run, write_json_line};
use crate::config::agent::S3Config;
use crate::registry::{Packed, PullProgress, Registry, Store};
use crate::types::{ByteSize, ImageRef, SafeUrl, plural};

/// For what is under way to end.
const PATIENCE: Duration = Duration::from_millis(500);

/// Packs, and says what came of it. Exit 0 it is there, 1 otherwise.
pub fn pack(
    config: &Path,
    image: &str,
    file: &Path,
    force: bool,
    json: bool,
    out: &mut dyn Write,
) -> Result<u8, Failure> {
    let image = reference(image)?;
    if !rustix::process::geteuid().is_root() {
        return Err(Failure::Failed {
            message: "pack reads layers in a confined process, which only root can set up".to_owned(),
            hint: Some("run it with sudo".to_owned()),
        });
    }
    let exists = || Failure::Failed {
        message: format!("{} is there already", file.display()),
        hint: Some("--force writes over it".to_owned()),
    };
    if !force && file.symlink_metadata().is_ok() {
        return Err(exists());
    }
    // The credentials and certificates of a host that has an agent; a laptop needs none.
    let (registries, s3) = match config == Path::new(args::CONFIG) && !config.exists() {
        true => Default::default(),
        false => {
            let config = run::config(config)?;
            (config.registries, config.s3)
        }
    };
    let begun = Instant::now();
    let work = Work::beside(file)?;
    let registry = registry(&work, registries, s3)?;
    let mut bar = PullBar::new(json);
    let packed =
        write(registry, &image, &work.file(), &mut |progress| pull::show(progress, &mut bar, json, out));
    bar.finish();
    let packed = packed?;
    work.settle(file, force).map_err(|error| match error.kind() {
        std::io::ErrorKind::AlreadyExists => exists(),
        _ => Failure::plain(format!("writing {}: {error}", file.display())),
    })?;
    let seconds = begun.elapsed().as_secs_f64();
    if json {
        let value = serde_json::json!({ "ok": true, "file": file, "image": image, "seconds": seconds, "packed": packed });
        write_json_line(out, &value)?;
    } else {
        let layers = plural(packed.layers.len(), "layer", "layers");
        let bytes = ByteSize(packed.bytes).human();
        let (name, digest) = (file.display(), packed.digest.short());
        writeln!(out, "{name}: {digest} ({layers}, {bytes} in {seconds:.1}s)")?;
    }
    Ok(0)
}

/// An image as a service file names it, or the path of an archive: one that begins with `/`, `./` or `../`.
fn reference(text: &str) -> Result<ImageRef, Failure> {
    if !["/", "./", "../"].iter().any(|begin| text.starts_with(begin)) {
        return text.parse().map_err(|error| Failure::Usage(format!("{error}; a path begins with / or ./")));
    }
    let path = std::fs::canonicalize(text).map_err(|error| Failure::plain(format!("{text}: {error}")))?;
    // Not by the rules for addresses: a path of this host is what it is.
    let url: Result<SafeUrl, _> = format!("file://{}", path.display()).parse();
    url.map(ImageRef::Archive).map_err(|error| Failure::plain(format!("{text}: {error}")))
}

fn registry(
    work: &Work,
    registries: std::collections::BTreeMap<String, crate::config::agent::RegistryConfig>,
    s3: S3Config,
) -> Result<Registry, Failure> {
    let store = Store::open(&work.0).map_err(|error| error.to_refusal())?;
    let registry = Registry::new(store.into(), registries).map_err(|error| error.to_refusal())?;
    Ok(registry.with_s3(s3))
}

/// Writes the file; gives up at an interrupt, so that nothing is left of it.
fn write(
    registry: Registry,
    image: &ImageRef,
    file: &Path,
    tell: &mut dyn FnMut(&PullProgress) -> std::io::Result<()>,
) -> Result<Packed, Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let (sender, receiver) = mpsc::channel();
    let (image, file) = (image.clone(), file.to_owned());
    let packing = runtime.spawn(async move {
        // Whoever shows it may have failed.
        let tell = |progress| drop(sender.send(progress));
        tokio::select! {
            packed = registry.pack_telling(&image, &file, &tell) => packed.map_err(|error| error.to_refusal().into()),
            _ = interrupted() => Err(Failure::plain("interrupted: nothing was written")),
        }
    });
    let result = receiver.into_iter().try_for_each(|progress| tell(&progress)).map_err(Failure::from);
    let result = result.and_then(|()| {
        runtime.block_on(packing).map_err(|error| Failure::plain(format!("packing: {error}"))).flatten()
    });
    // A layer that is being packed is not waited for.
    runtime.shutdown_timeout(PATIENCE);
    result
}

/// The terminal's, or a service manager's.
async fn interrupted() {
    match signal(SignalKind::terminate()) {
        Ok(mut ended) => tokio::select! {
            _ = ended.recv() => {}
            _ = tokio::signal::ctrl_c() => {}
        },
        Err(_) => drop(tokio::signal::ctrl_c().await),
    }
}

/// A directory beside the file, for all that is unfinished. It goes with this.
struct Work(PathBuf);

impl Work {
    fn beside(file: &Path) -> Result<Self, Failure> {
        let name =
            file.file_name().ok_or_else(|| Failure::Usage("-o takes the name of a file".to_owned()))?;
        let mut hidden = std::ffi::OsString::from(".");
        hidden.push(name);
        hidden.push(format!(".{}.pack", std::process::id()));
        let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        // Workers know no working directory.
        let folder = std::fs::canonicalize(folder)
            .map_err(|error| Failure::plain(format!("{}: {error}", folder.display())))?;
        let path = folder.join(hidden);
        std::fs::create_dir(&path).map_err(|error| Failure::plain(format!("{}: {error}", path.display())))?;
        Ok(Self(path))
    }

    fn file(&self) -> PathBuf {
        self.0.join("archive.tar")
    }

    /// Gives the file its name, durably.
    fn settle(&self, file: &Path, force: bool) -> std::io::Result<()> {
        let flags = if force { RenameFlags::empty() } else { RenameFlags::NOREPLACE };
        renameat_with(CWD, self.file(), CWD, file, flags)?;
        let folder = self.0.parent().unwrap_or(Path::new("."));
        std::fs::File::open(folder)?.sync_all()
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        // Best effort: its name says what it is.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_and_paths() {
        let image = |text: &str| reference(text).map(|image| image.to_string());
        assert_eq!(image("r.io/app:1").unwrap(), "r.io/app:1");
        assert_eq!(image("s3://images/app.tar").unwrap(), "s3://images/app.tar");
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("app.tar");
        std::fs::write(&path, "x").unwrap();
        let odd = format!("{}/./app.tar", dir.path().display());
        assert_eq!(image(&odd).unwrap(), format!("file://{}", path.canonicalize().unwrap().display()));
        assert!(matches!(reference("app.tar"), Err(Failure::Usage(_))));
        assert!(matches!(reference("/nonexistent/app.tar"), Err(Failure::Failed { .. })));
    }
}
