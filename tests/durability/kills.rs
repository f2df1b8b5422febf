//! `kill -9` at random moments of a pull, of the whole way and of its end, also while an earlier crash is made good.

use std::hash::{BuildHasher, Hasher};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use gitopsd::registry::Store;

use super::disk::{Disk, EXT4, Memory};
use super::puller::{self, End, Puller};
use super::relay::Relay;
use super::support::names;
use super::truth::Truth;

/// Numbers that look random, the same for the same seed (Knuth's MMIX).
pub struct Random(u64);

impl Random {
    /// From `DURABILITY_SEED`, else a new one; printed, so that a failure can be repeated.
    pub fn new() -> Self {
        let seed = std::env::var("DURABILITY_SEED").ok().map(|text| text.parse().unwrap());
        let seed = seed.unwrap_or_else(|| std::hash::RandomState::new().build_hasher().finish());
        println!("DURABILITY_SEED={seed}");
        Self(seed)
    }

    /// In 0..1.
    fn part(&mut self) -> f64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 11) as f64 / (1u64 << 53) as f64
    }

    fn is_one_in(&mut self, count: u32) -> bool {
        self.part() * f64::from(count) < 1.0
    }

    pub fn within(&mut self, time: Duration) -> Duration {
        time.mul_f64(self.part())
    }
}

/// One kind of pull.
struct Way<'a> {
    line: &'a Relay,
    /// Whether its layers get their names on the way.
    is_staged: bool,
    /// Bytes of layers that are to come.
    missing: u64,
    /// How long it takes, and its part after the last byte came.
    all: Duration,
    tail: Duration,
}

impl Way<'_> {
    fn start(&self, truth: &Truth, state: &Path) -> Puller {
        let failpoints = if self.is_staged { "pull::short_stages=return" } else { "" };
        Puller::start(state, &truth.image(&self.line.address(), "2"), failpoints)
    }

    /// Takes the time of a pull that nobody disturbs.
    fn measure(&mut self, truth: &Truth, state: &Path) {
        let mut puller = self.start(truth, state);
        let (begun, before) = (Instant::now(), self.line.sent());
        let mut last = begun;
        while !puller.is_over() {
            if self.line.sent() < before + self.missing {
                last = Instant::now();
            }
            std::thread::sleep(Duration::from_micros(500));
        }
        assert_eq!(puller.end(), End::Done);
        (self.all, self.tail) = (begun.elapsed(), last.elapsed());
    }
}

/// Kills one pull at a random moment: one in three at any time, one between the last byte and the end, and one when the
/// first final name is there.
fn kill_one(truth: &Truth, state: &Path, way: &Way<'_>, random: &mut Random) -> End {
    let layers = state.join("store/layers");
    let named = || std::fs::read_dir(&layers).map_or(0, Iterator::count);
    let (before, named_before) = (way.line.sent(), named());
    let mut puller = way.start(truth, state);
    let which = random.part();
    if which < 1.0 / 3.0 {
        std::thread::sleep(random.within(way.all));
    } else if which < 2.0 / 3.0 {
        while way.line.sent() < before + way.missing && !puller.is_over() {
            std::thread::sleep(Duration::from_micros(200));
        }
        std::thread::sleep(random.within(way.tail));
    } else {
        // Renames and record are a millisecond or two.
        while named() == named_before && !puller.is_over() {
            std::hint::spin_loop();
        }
        std::thread::sleep(random.within(Duration::from_micros(1500)));
    }
    puller.kill()
}

async fn kill(times: u32) {
    let truth = Truth::new().await;
    // A file system that nobody else writes to: its sync is this pull's alone.
    let memory = Memory::new(512);
    let disk = Disk::below(memory.root(), EXT4, 400);
    let mut random = Random::new();
    let slow = Relay::new(&truth.server, 30 << 20);
    let slower = Relay::new(&truth.server, 8 << 20);
    let fast = Relay::new(&truth.server, 1 << 40);
    // What most pulls are: a bump, on a host that has the layers below.
    let bumped = tempfile::tempdir_in(disk.root()).unwrap();
    puller::pull(bumped.path(), &truth.image(&truth.server.address(), "1")).await.unwrap();
    let mut ways = Vec::new();
    for (line, is_staged) in [(&slow, false), (&slower, true)] {
        for (is_bump, layers) in [(false, &[0, 1, 2, 3][..]), (true, &[2, 3])] {
            let dir = tempfile::tempdir_in(disk.root()).unwrap();
            if is_bump {
                copy(bumped.path(), dir.path());
            }
            let missing = truth.packed(layers);
            let mut way = Way { line, is_staged, missing, all: Duration::ZERO, tail: Duration::ZERO };
            way.measure(&truth, dir.path());
            ways.push(way);
        }
    }
    let (mut early, mut between, mut late, mut unfinished, mut twice, mut staged) = (0, 0, 0, 0, 0, 0);
    for number in 0..times {
        let dir = tempfile::tempdir_in(disk.root()).unwrap();
        let state = dir.path();
        let is_bump = random.is_one_in(2);
        if is_bump {
            copy(bumped.path(), state);
        }
        let way = &ways[usize::from(is_bump) + 2 * usize::from(random.is_one_in(2))];
        let mut end = kill_one(&truth, state, way, &mut random);
        // The next start may come before the kernel has ended what the killed process had started.
        if random.is_one_in(2) {
            drop(Store::open(state).unwrap());
        }
        let left = truth.check(state).unwrap_or_else(|wrong| panic!("after kill {number}: {wrong}"));
        unfinished += u32::from(!names(&state.join("store/tmp")).is_empty());
        // A crash while a crash is made good.
        let left = if left.layers.len() < 4 && random.is_one_in(4) {
            twice += 1;
            puller::wait_for_orphans(state);
            end = kill_one(&truth, state, way, &mut random);
            truth.check(state).unwrap_or_else(|wrong| panic!("after kill {number}: {wrong}"))
        } else {
            left
        };
        if is_bump {
            assert!(left.layers.contains(&0) && left.layers.contains(&1), "what was complete stays");
        }
        match (left.layers.len(), left.images.contains("2")) {
            (_, true) => late += 1,
            (named, false) if named > if is_bump { 2 } else { 0 } => {
                between += 1;
                staged += u32::from(named < 4);
            }
            _ => early += 1,
        }
        if end == End::Done {
            assert!(left.images.contains("2"), "a pull that says so is complete");
        }
        puller::wait_for_orphans(state);
        let before = fast.sent();
        let missing = truth.recover(state, "2", &fast.address()).await;
        // Manifest, configuration and headers come with it.
        let came = fast.sent() - before;
        assert!(
            (missing..missing + (32 << 10)).contains(&came),
            "{came} bytes for {missing} that were missing"
        );
    }
    println!(
        "{times} kills: {early} before the first name, {between} between it and the record, \
         {staged} of them with some layers of their names and others without, {late} after; {twice} twice, \
         {unfinished} left something unfinished; a pull takes {:?} and {:?}",
        ways[0].all, ways[2].all
    );
    assert!(staged >= times / 20, "{staged} of {times} kills came when some layers had their names");
    assert!(early >= times / 5, "{early} of {times} kills came before the first name");
    assert!(unfinished >= times / 10, "{unfinished} of {times} kills left something unfinished");
}

/// With everything that a tree has: modes, owners, times, links.
fn copy(from: &Path, to: &Path) {
    let status = Command::new("cp").arg("--archive").arg(from.join("store")).arg(to).status().unwrap();
    assert!(status.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn forty_kills() {
    kill(40).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "minutes: make test-all"]
async fn two_hundred_kills() {
    kill(200).await;
}
