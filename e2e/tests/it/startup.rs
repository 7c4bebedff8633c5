use anyhow::{Context, Result, ensure};
use floodway_e2e::{
    role::{Role, command, free_port},
    stack::Stack,
};
use std::{collections::BTreeMap, net::TcpListener, process::Output};

/// Settings with which every role would start.
fn complete(stack: &Stack) -> Result<BTreeMap<String, String>> {
    let entries = [
        ("FLOODWAY_KAFKA_BROKERS", stack.brokers.clone()),
        ("FLOODWAY_DATABASE_URL", stack.database_url.clone()),
        ("FLOODWAY_SEALING_KEY", "e2e:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=".to_owned()),
        ("FLOODWAY_CONTROL_PLANE__ADMIN_KEY", "e2e-admin-key-0123456789".to_owned()),
        ("FLOODWAY_INGEST__LISTEN", format!("127.0.0.1:{}", free_port()?)),
        ("FLOODWAY_CONTROL_PLANE__LISTEN", format!("127.0.0.1:{}", free_port()?)),
        ("FLOODWAY_ADMIN__LISTEN", format!("127.0.0.1:{}", free_port()?)),
        ("FLOODWAY_TOPIC_PREFIX", format!("s{:08x}-", rand::random::<u32>())),
    ];
    Ok(entries.map(|(name, value)| (name.to_owned(), value)).into())
}

async fn run(environment: &BTreeMap<String, String>, arguments: &[&str]) -> Result<Output> {
    let run = command(environment)?.args(arguments).kill_on_drop(true).output();
    tokio::time::timeout(std::time::Duration::from_secs(60), run)
        .await
        .context("it did not end")?
        .map_err(Into::into)
}

#[tokio::test]
async fn a_missing_or_wrong_setting_ends_with_78_and_one_line_that_names_it() -> Result<()> {
    let stack = Stack::shared()?;
    let taken = TcpListener::bind("127.0.0.1:0")?;
    let taken = taken.local_addr()?.to_string();
    const APPLY: &str = "topics apply --dev --replication 1";
    // Command, variable, value (None: absent), what the line says.
    let mut table: Vec<(&str, &str, Option<&str>, &str)> = vec![
        ("ingest", "FLOODWAY_KAFKA_BROKERS", None, "FLOODWAY_KAFKA_BROKERS): is required"),
        ("retry-scheduler", "FLOODWAY_DATABASE_URL", None, "FLOODWAY_DATABASE_URL): is required"),
        ("dispatcher", "FLOODWAY_SEALING_KEY", None, "FLOODWAY_SEALING_KEY): is required"),
        (
            "dispatcher",
            "FLOODWAY_SEALING_KEY",
            Some("hunter2"),
            "FLOODWAY_SEALING_KEY): sealing keys must be",
        ),
        ("control-plane", "FLOODWAY_CONTROL_PLANE__ADMIN_KEY", None, "FLOODWAY_CONTROL_PLANE__ADMIN_KEY"),
        ("ingest", "FLOODWAY_INGEST__LISTEN", Some("nowhere"), "FLOODWAY_INGEST__LISTEN"),
        ("ingest", "FLOODWAY_INGEST__LISTEN", Some(&taken), "FLOODWAY_INGEST__LISTEN"),
        ("ingest", "FLOODWAY_ADMIN__LISTEN", Some(&taken), "FLOODWAY_ADMIN__LISTEN"),
        ("ingest", "FLOODWAY_INGEST__LISTN", Some("127.0.0.1:1"), "FLOODWAY_INGEST__LISTN): unknown"),
        ("dispatcher", "FLOODWAY_DISPATCHER__ALLOWED_NETWORKS", Some("[\"everything\"]"), "allowed_networks"),
    ];
    for command in ["ingest", "dispatcher", "retry-scheduler", "control-plane", "dev", "migrate", "validate"]
    {
        table.push((
            command,
            "FLOODWAY_DATABASE_URL",
            Some("hunter2"),
            "setting database_url (FLOODWAY_DATABASE_URL): ",
        ));
    }
    for command in ["dispatcher", "dev", APPLY, "validate"] {
        for (variable, value) in
            [("FLOODWAY_KAFKA__CA_FILE", "/nowhere.pem"), ("FLOODWAY_KAFKA__SASL_MECHANISM", "hunter2")]
        {
            table.push((command, variable, Some(value), variable));
        }
        let expected = "FLOODWAY_KAFKA__SASL_USERNAME): is required";
        table.push((command, "FLOODWAY_KAFKA__SECURITY_PROTOCOL", Some("sasl_plaintext"), expected));
    }
    // Settings that contradict the others, which leave the connection plain.
    for (variable, value, expected) in [
        ("FLOODWAY_KAFKA__SECURITY_PROTOCOL", "tls", "FLOODWAY_KAFKA__SECURITY_PROTOCOL): must be one of"),
        (
            "FLOODWAY_KAFKA__SASL_PASSWORD",
            "hunter2",
            "FLOODWAY_KAFKA__SASL_PASSWORD): needs kafka.security_protocol",
        ),
        ("FLOODWAY_KAFKA__CERTIFICATE_FILE", "/a.pem", "FLOODWAY_KAFKA__CERTIFICATE_FILE): needs"),
        ("FLOODWAY_KAFKA__KEY_PASSWORD", "hunter2", "FLOODWAY_KAFKA__KEY_PASSWORD): needs"),
    ] {
        table.push(("ingest", variable, Some(value), expected));
    }
    for (command, variable, value, expected) in table {
        let mut environment = complete(&stack)?;
        match value {
            Some(value) => environment.insert(variable.to_owned(), value.to_owned()),
            None => environment.remove(variable),
        };
        let arguments: Vec<&str> = command.split_whitespace().collect();
        let output = run(&environment, &arguments).await?;
        let said = String::from_utf8_lossy(&output.stderr);
        let line = said.lines().last().unwrap_or_default();
        ensure!(
            output.status.code() == Some(78),
            "{command} with {variable}={value:?}: {} {said}",
            output.status
        );
        ensure!(
            line.starts_with("floodway: ") && line.contains(expected),
            "{command} with {variable}={value:?}: {line}"
        );
        ensure!(!said.contains("hunter2"), "a value is quoted: {said}");
    }
    Ok(())
}

#[tokio::test]
async fn topics_that_break_a_promise_end_the_start_with_78_and_their_names() -> Result<()> {
    let stack = Stack::shared()?;
    let environment = complete(&stack)?;
    let prefix = environment["FLOODWAY_TOPIC_PREFIX"].clone();
    let create = |topic: &str, partitions: &str, bytes: &str| {
        let (stack, topic) = (&stack, format!("{prefix}{topic}"));
        let (partitions, setting) = (partitions.to_owned(), format!("max.message.bytes={bytes}"));
        async move {
            let create =
                ["kafka-topics", "--bootstrap-server", &stack.brokers, "--create", "--topic", &topic];
            let shape = ["--partitions", &partitions, "--config", &setting];
            stack.kafka_tool(&[&create[..], &shape[..]].concat()).await
        }
    };
    create("outcomes", "2", "2000000").await?;
    create("due", "3", "1000").await?;
    let output =
        run(&environment, &["topics", "apply", "--dev", "--replication", "1", "--partitions", "2"]).await?;
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(78), "{said}");
    assert!(said.contains(&format!("{prefix}due has 3 partitions and {prefix}outcomes has 2")), "{said}");
    assert!(said.contains(&format!("{prefix}due has max.message.bytes=1000, it must be at least")), "{said}");
    // The roles that need them refuse as well.
    for role in ["dispatcher", "retry-scheduler"] {
        let output = run(&environment, &[role]).await?;
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(78), "{role}: {said}");
        assert!(said.contains(&format!("{prefix}due")), "{role}: {said}");
    }
    Ok(())
}

#[tokio::test]
async fn production_topics_need_three_replicas_unless_dev_is_said() -> Result<()> {
    let output = run(&complete(&Stack::shared()?)?, &["topics", "apply", "--replication", "1"]).await?;
    assert_eq!(output.status.code(), Some(78));
    assert!(String::from_utf8_lossy(&output.stderr).contains("--dev"));
    Ok(())
}

#[tokio::test]
async fn with_servers_unreachable_operators_commands_end_with_69_and_roles_wait() -> Result<()> {
    let mut environment = complete(&Stack::shared()?)?;
    let nobody = format!("127.0.0.1:{}", free_port()?);
    environment.insert("FLOODWAY_KAFKA_BROKERS".to_owned(), nobody.clone());
    environment.insert("FLOODWAY_DATABASE_URL".to_owned(), format!("postgres://u:p@{nobody}/floodway"));
    for arguments in [&["migrate"][..], &["topics", "apply", "--dev", "--replication", "1"]] {
        let output = run(&environment, arguments).await?;
        assert_eq!(
            output.status.code(),
            Some(69),
            "{arguments:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    let folder = std::env::temp_dir().join(format!("floodway-startup-{:08x}", rand::random::<u32>()));
    std::fs::create_dir_all(&folder)?;
    for name in ["ingest", "dispatcher", "retry-scheduler", "control-plane"] {
        let mut role = Role::new(name, environment.clone(), &folder)?;
        role.start()?;
        role.answers("live").await?;
        assert_eq!(role.health("ready").await, Some(503), "{name}");
        assert!(role.terminate().await?.success(), "{name}:\n{}", role.log_tail());
    }
    std::fs::remove_dir_all(&folder)?;
    Ok(())
}
