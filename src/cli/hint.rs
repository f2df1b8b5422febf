//! What a person can do about a refusal, said for this case: with the service's own name, and no more than fits.

use crate::engine::native::NOT_FOUND;
use crate::types::{Reason, ServiceName};

/// The advice on a refusal of a service.
pub fn of(reason: Reason, message: &str, service: &ServiceName) -> String {
    let mut hint = reason.todo().replace("SERVICE", service.as_str());
    // Only these can come of a layer that is not as it was unpacked.
    let of_the_store = message.contains(NOT_FOUND)
        || message.contains("the image's layers cannot be mounted")
        || message.contains("is not a program for this machine");
    if reason == Reason::StartFailed && of_the_store {
        hint.push_str(" If the image is right elsewhere, `gitopsd fsck` says whether it is damaged here.");
    }
    hint
}

/// What is known under a name that is much like `name`: for a word that names nothing.
pub fn near(name: &ServiceName, known: &[&str]) -> Option<String> {
    if known.is_empty() {
        return None;
    }
    Some(match crate::config::did_you_mean(name.as_str(), known) {
        Some(hint) => hint,
        None => format!("there are: {}", known.join(", ")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hint_names_the_service_and_fsck_only_where_it_may_help() {
        let shop = "shop".parse().unwrap();
        assert!(of(Reason::Held, "held by ada", &shop).contains("`gitopsd resume shop`"));
        for reason in Reason::ALL {
            assert!(!of(*reason, "whatever", &shop).contains("SERVICE"));
        }
        let lost = format!("shop.2: `/bin/shop` {NOT_FOUND}");
        assert!(of(Reason::StartFailed, &lost, &shop).contains("gitopsd fsck"));
        assert!(!of(Reason::StartFailed, "shop.2: user `x` is not known", &shop).contains("fsck"));
        assert!(!of(Reason::Exited, &lost, &shop).contains("fsck"));
    }

    #[test]
    fn near_names_are_offered() {
        let name = "shpo".parse().unwrap();
        assert_eq!(near(&name, &["web", "shop"]).unwrap(), "did you mean `shop`?");
        assert_eq!(near(&name, &["alpha", "beta"]).unwrap(), "there are: alpha, beta");
        assert_eq!(near(&name, &[]), None);
    }
}
