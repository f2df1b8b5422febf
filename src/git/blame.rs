//! Who wrote which line of a service's configuration.

use std::path::Path;

use git2::BlameOptions;
use serde::Serialize;

use super::clone::{CommitLine, LocalClone};
use super::{GitError, id_of, oid_of};
use crate::types::CommitId;

/// One line of a file, with the commit that made it what it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct BlamedLine {
    /// The file, as seen from the folder that holds `gitopsd.toml`.
    pub file: String,
    /// Its number there, from 1.
    pub line: usize,
    /// What it says.
    pub text: String,
    /// Who made it so.
    #[serde(flatten)]
    pub by: CommitLine,
}

impl LocalClone {
    /// The lines of `file`, which lies in `folder` of the repository, at a commit; nothing where there is no such file.
    ///
    /// # Errors
    /// `git-unreachable`: the history cannot be read.
    pub fn blame(&self, folder: &Path, file: &str, at: &CommitId) -> Result<Vec<BlamedLine>, GitError> {
        let failed = |error| self.failed(format!("read the history of {file}"), error);
        let path = folder.join(file);
        let newest = oid_of(at)?;
        let tree = self.repository.find_commit(newest).and_then(|commit| commit.tree()).map_err(failed)?;
        let Ok(entry) = tree.get_path(&path) else { return Ok(Vec::new()) };
        let blob = self.repository.find_blob(entry.id()).map_err(failed)?;
        let mut options = BlameOptions::new();
        options.newest_commit(newest);
        let blame = self.repository.blame_file(&path, Some(&mut options)).map_err(failed)?;
        let text = String::from_utf8_lossy(blob.content());
        let mut lines = Vec::new();
        for (number, text) in (1..).zip(text.lines()) {
            let Some(hunk) = blame.get_line(number) else { continue };
            let Some(by) = self.describe(&id_of(hunk.final_commit_id())?) else { continue };
            lines.push(BlamedLine { file: file.to_owned(), line: number, text: text.to_owned(), by });
        }
        Ok(lines)
    }

    /// The folder of the repository that `dir` is.
    pub fn folder(&self, dir: &Path) -> std::path::PathBuf {
        super::at::folder(&self.repository, dir)
    }
}
