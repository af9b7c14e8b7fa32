//! What people and brokers write as text: names, prefixes, topics, keys, broker addresses.

#![no_main]

use fuzz::Reader;
use libfuzzer_sys::fuzz_target;
use replica::{ClusterKey, Name, Topic, Topics};

/// Whether `topic` matches `filter`, by the rules of MQTT.
fn matches(filter: &str, topic: &str) -> bool {
    let (mut filter, mut topic) = (filter.split('/'), topic.split('/'));
    loop {
        match (filter.next(), topic.next()) {
            (Some("#"), _) | (None, None) => return true,
            (Some("+"), Some(_)) => {}
            (Some(wanted), Some(level)) if wanted == level => {}
            _ => return false,
        }
    }
}

/// How `topics` spells what it has understood.
fn spelled(topics: &Topics, topic: &Topic) -> String {
    match topic {
        Topic::Broadcast { from } => topics.broadcast(from),
        Topic::Unicast { to, from } => topics.unicast(to, from),
        Topic::Roll { to, from } => topics.roll(to.as_ref(), from),
        Topic::Status { node } => topics.status(node),
    }
}

fn check_topics(prefix: &str, cluster: &Name, me: &Name, other: &Name, arrived: &str) {
    let Ok(topics) = Topics::new(prefix, cluster) else {
        return;
    };
    let subscriptions = topics.subscriptions(me);
    let subscribed = |topic: &str| subscriptions.iter().any(|filter| matches(filter, topic));
    for said in [
        Topic::Broadcast {
            from: other.clone(),
        },
        Topic::Unicast {
            to: me.clone(),
            from: other.clone(),
        },
        Topic::Roll {
            to: None,
            from: other.clone(),
        },
        Topic::Roll {
            to: Some(me.clone()),
            from: other.clone(),
        },
        Topic::Status {
            node: other.clone(),
        },
    ] {
        let topic = spelled(&topics, &said);
        assert!(
            topic.matches('/').count() <= 7,
            "{topic}: AWS IoT allows seven slashes"
        );
        assert!(subscribed(&topic), "{topic}");
        assert_eq!(topics.parse(&topic), Some(said));
    }
    for arrived in [arrived.to_owned(), format!("{}/{arrived}", topics.root())] {
        let Some(topic) = topics.parse(&arrived) else {
            continue;
        };
        assert_eq!(
            spelled(&topics, &topic),
            arrived,
            "each topic has one spelling"
        );
        let for_another = matches!(&topic, Topic::Unicast { to, .. } if to != me);
        assert_eq!(subscribed(&arrived), !for_another, "{arrived}");
    }
}

fn check_broker(text: &str) {
    let Ok(url) = text.parse::<mqtt::BrokerUrl>() else {
        return;
    };
    assert!(url.port() > 0 && !url.host().is_empty());
    // Shown without its password, and otherwise an address that reads back as the same.
    let shown = url.to_string();
    let again: mqtt::BrokerUrl = shown.parse().expect("what is shown is an address");
    assert_eq!(again.to_string(), shown);
    assert_eq!(
        (again.scheme(), again.host(), again.port(), again.path()),
        (url.scheme(), url.host(), url.port(), url.path())
    );
    assert_eq!(again.is_loopback(), url.is_loopback());
}

fn check_key(text: &str) {
    if let Ok(key) = ClusterKey::parse(text) {
        let written = key.to_text();
        let again = ClusterKey::parse(&written).expect("what was written is read");
        assert_eq!(again.to_text(), written);
        assert_eq!(written, text.trim().to_ascii_lowercase());
    }
}

fuzz_target!(|data: &[u8]| {
    let mut reader = Reader::new(data);
    let kind = reader.byte();
    let Ok(text) = std::str::from_utf8(reader.rest()) else {
        return;
    };
    match kind % 4 {
        0 => check_broker(text),
        1 => check_key(text),
        _ => {
            let mut lines = text.split('\n');
            let mut next = || lines.next().unwrap_or_default();
            let prefix = next();
            let names = [next(), next(), next()].map(Name::new);
            if let [Ok(cluster), Ok(me), Ok(other)] = &names {
                for name in [cluster, me, other] {
                    assert_eq!(Name::new(name.as_str()).as_ref(), Ok(name));
                }
                check_topics(prefix, cluster, me, other, next());
            }
        }
    }
});
