//! Which finished layers may get their names while others are missing.

use super::*;
use crate::registry::underway::Underway;
use crate::registry::unpack::Implied;

fn layer(number: u8) -> Digest {
    Digest::from_sha256(&[number; 32])
}

/// A pull of an image of these layers, lowest first, all of which are missing but for those that are `here`.
async fn pull(underway: &Underway, dir: &std::path::Path, image: &[u8], here: &[u8]) -> Stages {
    let store = Arc::new(Store::open(dir).unwrap());
    let diff_ids: Vec<Digest> = image.iter().map(|number| layer(*number)).collect();
    let is_here = |id: &Digest| here.iter().any(|number| layer(*number) == *id);
    let claims = underway.layers(&diff_ids, is_here).await;
    Stages::begin(store, "r.io/app:1".parse().unwrap(), diff_ids, &[], claims).unwrap()
}

fn finish(stages: &mut Stages, number: u8, implies: bool) {
    let implied = if implies { Implied::from([("app".into(), false)]) } else { Implied::new() };
    let place = stages.plan.store.temporary().unwrap();
    let diff_id = layer(number);
    stages.finished(Unpacked { place, implied, blob: (diff_id.clone(), 1), diff_id, size: 1 });
}

#[tokio::test]
async fn what_implies_directories_waits_for_what_is_below_it() {
    let dir = tempfile::tempdir().unwrap();
    let underway = Underway::default();
    let mut stages = pull(&underway, dir.path(), &[9, 1, 2, 3], &[9]).await;
    assert_eq!(stages.ready(), []);
    finish(&mut stages, 3, true);
    assert_eq!(stages.ready(), [], "the two below it are missing");
    finish(&mut stages, 2, false);
    assert_eq!(stages.ready(), [layer(2)], "this one implies nothing");
    finish(&mut stages, 1, true);
    assert_eq!(
        stages.ready(),
        [layer(1), layer(2), layer(3)],
        "what is finished too is enough, and what was here"
    );
}

#[tokio::test]
async fn of_a_layer_that_an_image_has_twice_the_upper_place_counts() {
    let dir = tempfile::tempdir().unwrap();
    let underway = Underway::default();
    let mut stages = pull(&underway, dir.path(), &[1, 2, 1], &[]).await;
    finish(&mut stages, 1, true);
    assert_eq!(stages.ready(), []);
    finish(&mut stages, 2, false);
    assert_eq!(stages.ready(), [layer(1), layer(2)]);
}

#[tokio::test]
async fn a_stage_takes_its_claims_with_it() {
    let dir = tempfile::tempdir().unwrap();
    let underway = Underway::default();
    let mut stages = pull(&underway, dir.path(), &[1, 2], &[]).await;
    finish(&mut stages, 1, false);
    // A quick pull has no stage of its own.
    stages.tend();
    assert!(stages.ended().await.is_none());
    let stage = stages.stage(vec![layer(1)]);
    let free = |id| {
        let wait = underway.layers(std::slice::from_ref(id), |_| false);
        let wait = tokio::time::timeout(Duration::from_millis(20), wait);
        async move { wait.await.is_ok() }
    };
    let (one, two) = (layer(1), layer(2));
    assert!(!free(&one).await, "until it has its name");
    drop(stage);
    assert!(free(&one).await && !free(&two).await);
}

/// A sync tells of an error once: after that nobody knows what else was lost.
#[tokio::test]
async fn after_a_stage_that_failed_there_is_none() {
    let dir = tempfile::tempdir().unwrap();
    let underway = Underway::default();
    let mut stages = pull(&underway, dir.path(), &[1, 2], &[]).await;
    // It has no listing.
    finish(&mut stages, 1, false);
    stages.begin_stage();
    assert!(stages.ended().await.unwrap().is_err());
    finish(&mut stages, 2, false);
    stages.begin_stage();
    assert!(stages.ended().await.is_none() && stages.named().is_empty());
}
