//! A disk that takes data and then fails to write it: syncfs(2) says so, and nothing of it gets a name.

use gitopsd::registry::Disposition;
use gitopsd::types::Reason;

use super::disk::{Disk, EXT4, Kind, Memory, XFS, alone, fill_up, sync};
use super::puller::{End, Puller, pull};
use super::relay::Relay;
use super::support::{names, wait_for};
use super::truth::{Holds, Truth};

/// The disk under the file system is thinner than it says: writes into memory go well, and what is behind it fills up.
#[tokio::test(flavor = "multi_thread")]
async fn an_error_of_the_sync_is_heard() {
    let _alone = alone().await;
    let truth = Truth::new().await;
    let memory = Memory::new(96);
    let mut disk = Disk::below(memory.root(), EXT4, 512);
    let state = disk.root().join("state");
    let address = truth.server.address();
    pull(&state, &truth.image(&address, "1")).await.unwrap();
    let ballast = fill_up(memory.root(), 2 << 20);
    let error = pull(&state, &truth.image(&address, "2")).await.unwrap_err();
    assert!(error.to_string().contains("making layers durable"), "{error}");
    // Which error a device gives is its own affair: no space, or no luck.
    assert!(matches!(error.reason, Reason::StorageIo | Reason::DiskSpace), "{error}");
    assert_eq!(error.disposition, Disposition::Retry, "{error}");
    let holds = truth.check(&state).unwrap();
    assert_eq!(holds, Holds { layers: [0, 1].into(), images: ["1"].into() });
    assert_eq!(names(&state.join("store/images")).len(), 1);
    // A second try does not get away with what the first one left in memory.
    let again = pull(&state, &truth.image(&address, "2")).await;
    again.unwrap_err();
    assert_eq!(truth.check(&state).unwrap(), holds);
    std::fs::remove_file(ballast).unwrap();
    disk.repair();
    truth.recover(&state, "2", &address).await;
}

/// Data of a layer is lost on its way to the disk while the rest of it is still coming. Somebody else's syncfs(2) hears
/// of it, the disk is well again, and the pull ends. Gives what it says, and the disk after a fresh mount.
fn lose_data_on_the_way(truth: &Truth, failpoints: &str) -> (End, Disk, Memory) {
    // The log of this file system was written when it was made: it has its place below, and data has not.
    let memory = Memory::new(160);
    let mut disk = Disk::below(memory.root(), XFS, 320);
    let state = disk.root().join("state");
    std::fs::create_dir(&state).unwrap();
    sync(&disk.root()).unwrap();
    // Some five seconds of it.
    let line = Relay::new(&truth.server, 2 << 20);
    let mut puller = Puller::start(&state, &truth.image(&line.address(), "2"), failpoints);
    wait_for("a part of the image", || (line.sent() > 2 << 20).then_some(()));
    let ballast = fill_up(memory.root(), 0);
    let heard = wait_for("the loss", || sync(&disk.root()).err());
    println!("somebody else heard: {heard}");
    std::fs::remove_file(ballast).unwrap();
    sync(&disk.root()).unwrap();
    assert!(!puller.is_over(), "it is on its way all the while");
    let end = puller.end();
    disk.remount();
    (end, disk, memory)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_error_that_somebody_else_heard_is_heard() {
    let _alone = alone().await;
    if !Kind::is_here(&XFS) {
        return;
    }
    let truth = Truth::new().await;
    let (end, disk, _memory) = lose_data_on_the_way(&truth, "");
    match end {
        End::Failed(what) => assert!(what.contains("making layers durable"), "{what}"),
        other => panic!("{other:?}, with {:?}", truth.check(&disk.root().join("state"))),
    }
    let state = disk.root().join("state");
    // Layers that were durable before the loss may have their names: they are whole.
    let holds = truth.check(&state).unwrap();
    assert!(holds.images.is_empty() && holds.layers.len() < 4, "{holds:?}");
    truth.recover(&state, "2", &truth.server.address()).await;
}

/// The test above can fail: who does not sync does not hear, and has names for what is not there.
#[tokio::test(flavor = "multi_thread")]
#[cfg_attr(not(feature = "failpoints"), ignore = "needs the feature failpoints")]
async fn without_its_sync_the_same_pull_names_what_is_lost() {
    let _alone = alone().await;
    if !Kind::is_here(&XFS) {
        return;
    }
    let truth = Truth::new().await;
    let (end, disk, _memory) = lose_data_on_the_way(&truth, "pull::skip_sync=return");
    assert_eq!(end, End::Done);
    let wrong = truth.check(&disk.root().join("state")).unwrap_err();
    assert!(wrong.contains("entries are not as they should be"), "{wrong}");
}
