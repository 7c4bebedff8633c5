use anyhow::{Context, Result, ensure};
use floodway_e2e::{
    front::Front,
    load::{EventClient, Outgoing, Word},
    role::Role,
    stack::Stack,
};
use tokio::{process::Command, task::JoinSet};

/// Settings of a client, and what is expected of it.
struct Case {
    name: &'static str,
    settings: Vec<(&'static str, String)>,
    /// Words of the health report, none for a client that gets in.
    refusal: &'static [&'static str],
}

const BROKERS: &str = "FLOODWAY_KAFKA_BROKERS";
const PROTOCOL: &str = "FLOODWAY_KAFKA__SECURITY_PROTOCOL";
const MECHANISM: &str = "FLOODWAY_KAFKA__SASL_MECHANISM";
const USERNAME: &str = "FLOODWAY_KAFKA__SASL_USERNAME";
const PASSWORD: &str = "FLOODWAY_KAFKA__SASL_PASSWORD";
const CA_FILE: &str = "FLOODWAY_KAFKA__CA_FILE";
const CERTIFICATE_FILE: &str = "FLOODWAY_KAFKA__CERTIFICATE_FILE";
const KEY_FILE: &str = "FLOODWAY_KAFKA__KEY_FILE";
const WRONG_PASSWORD: &str = "hunter2-is-not-the-password";

#[tokio::test(flavor = "multi_thread")]
async fn protected_listeners_let_in_who_is_right_and_health_says_why_the_others_are_not() -> Result<()> {
    let stack = Stack::kafka("e2e-secure", &["--secure"]).await?;
    let front = Front::prepare(&stack, "--dev --replication 1 --partitions 2", async |_| Ok(())).await?;
    let password = tokio::fs::read_to_string(stack.value("STACK_KAFKA_PASSWORD_FILE")?).await?;
    let strangers = strange_authority().await?;

    let mut running = JoinSet::new();
    for case in cases(&stack, &password, &strangers)? {
        let (role, url) = front.another("ingest", case.name, &case.settings)?;
        let client = EventClient::new(&url, &front.key);
        let password = password.clone();
        running.spawn(async move {
            let name = case.name;
            run(case, role, &client, &password).await.with_context(|| name.to_owned())
        });
    }
    let failed: Vec<_> = running.join_all().await.into_iter().filter_map(Result::err).collect();
    ensure!(failed.is_empty(), "{failed:#?}");

    let wrong = with(sasl_ssl(&stack, &password)?, &[(PASSWORD, WRONG_PASSWORD)]);
    let apply = ["topics", "apply", "--dev", "--replication", "1", "--partitions", "2"];
    let error = front.operate(&apply, &wrong).await.expect_err("a wrong password").to_string();
    ensure!(error.contains("exit status: 69") && error.contains("authentication failed"), "{error}");
    ensure!(!error.contains(WRONG_PASSWORD), "{error}");
    front.operate(&apply, &sasl_ssl(&stack, &password)?).await?;

    // The other roles say it as well.
    for name in ["dispatcher", "retry-scheduler", "control-plane"] {
        let (mut role, _) = front.another(name, name, &other_role(&wrong))?;
        role.start()?;
        let report = role.reports(&["authentication failed"]).await?;
        ensure!(!report.contains(WRONG_PASSWORD), "{report}");
        ensure!(role.terminate().await?.success(), "{name}:\n{}", role.log_tail());
    }
    tokio::fs::remove_dir_all(&strangers).await?;
    front.remove().await?;
    stack.remove().await
}

/// One ingest with the case's settings: lets events in, or says why it cannot, lives on and ends when asked.
async fn run(case: Case, mut role: Role, client: &EventClient, password: &str) -> Result<()> {
    role.start()?;
    let event = [Outgoing::small(case.name, case.name)];
    if case.refusal.is_empty() {
        role.ready().await?;
        client.send_until_acknowledged(&event).await?;
    } else {
        let report = role.reports(case.refusal).await?;
        println!("{}: {}", case.name, reason(&report, case.refusal));
        ensure!(!report.contains(WRONG_PASSWORD), "{report}");
        ensure!(role.health("ready").await == Some(503), "it is ready");
        ensure!(role.health("live").await == Some(200), "it is not live");
        let answer = client.send(&event).await?;
        ensure!((answer.status, answer.words[0]) == (Some(503), Word::NotPersisted), "{answer:?}");
        role.runs()?;
    }
    ensure!(role.terminate().await?.success(), "it did not end in order:\n{}", role.log_tail());
    let log = role.log();
    ensure!(!log.contains(WRONG_PASSWORD) && !log.contains(password), "a password is in the log:\n{log}");
    let told = case.refusal.iter().all(|word| log.contains(word));
    ensure!(told, "the log does not say why:\n{log}");
    Ok(())
}

fn cases(stack: &Stack, password: &str, strangers: &std::path::Path) -> Result<Vec<Case>> {
    let sasl_ssl = sasl_ssl(stack, password)?;
    let mtls = vec![
        (BROKERS, stack.value("STACK_KAFKA_MTLS_BROKERS")?),
        (PROTOCOL, "ssl".to_owned()),
        (CA_FILE, stack.value("STACK_KAFKA_CA_FILE")?),
        (CERTIFICATE_FILE, stack.value("STACK_KAFKA_CERTIFICATE_FILE")?),
        (KEY_FILE, stack.value("STACK_KAFKA_KEY_FILE")?),
    ];
    let sasl_plaintext = vec![
        (BROKERS, stack.value("STACK_KAFKA_SASL_PLAINTEXT_BROKERS")?),
        (PROTOCOL, "sasl_plaintext".to_owned()),
        (USERNAME, stack.value("STACK_KAFKA_USER")?),
        (PASSWORD, password.to_owned()),
    ];
    let secure = stack.value("STACK_KAFKA_SECURE_BROKERS")?;
    let by_another_name = secure.replace("127.0.0.1", "localhost");
    let strange_ca = strangers.join("ca.pem").display().to_string();
    let without_certificate = mtls[..3].to_vec();
    let right = |name, settings| Case { name, settings, refusal: &[] };
    let wrong = |name, settings, refusal| Case { name, settings, refusal };
    Ok(vec![
        right("scram-sha-512", sasl_ssl.clone()),
        right("scram-sha-256", with(sasl_ssl.clone(), &[(MECHANISM, "SCRAM-SHA-256")])),
        right("plain", with(sasl_ssl.clone(), &[(MECHANISM, "PLAIN")])),
        right("client-certificate", mtls),
        right("sasl-plaintext", sasl_plaintext),
        wrong(
            "wrong-password",
            with(sasl_ssl.clone(), &[(PASSWORD, WRONG_PASSWORD)]),
            &["authentication failed", "sasl_password"],
        ),
        wrong(
            "wrong-password-plain",
            with(sasl_ssl.clone(), &[(PASSWORD, WRONG_PASSWORD), (MECHANISM, "PLAIN")]),
            &["authentication failed", "sasl_password"],
        ),
        wrong(
            "wrong-authority",
            with(sasl_ssl.clone(), &[(CA_FILE, &strange_ca)]),
            &["TLS failed", "ca_file", "certificate verify failed"],
        ),
        wrong(
            "wrong-host-name",
            with(sasl_ssl.clone(), &[(BROKERS, &by_another_name)]),
            &["TLS failed", "certificate verify failed"],
        ),
        wrong(
            "no-such-host",
            with(sasl_ssl, &[(BROKERS, "no-such-host.invalid:9093")]),
            &["resolve", "no-such-host.invalid"],
        ),
        wrong("plaintext-to-tls", vec![(BROKERS, secure)], &["connection closed", "kafka.security_protocol"]),
        wrong(
            "tls-to-plaintext",
            with(without_certificate.clone(), &[(BROKERS, &stack.brokers)]),
            &["SSL handshake failed", "PLAINTEXT"],
        ),
        wrong("no-client-certificate", without_certificate, &["alert", "certificate"]),
    ])
}

fn sasl_ssl(stack: &Stack, password: &str) -> Result<Vec<(&'static str, String)>> {
    Ok(vec![
        (BROKERS, stack.value("STACK_KAFKA_SECURE_BROKERS")?),
        (PROTOCOL, "sasl_ssl".to_owned()),
        (USERNAME, stack.value("STACK_KAFKA_USER")?),
        (PASSWORD, password.to_owned()),
        (CA_FILE, stack.value("STACK_KAFKA_CA_FILE")?),
    ])
}

/// What the roles need besides; the database is not there, which is another line of their report.
fn other_role(kafka: &[(&'static str, String)]) -> Vec<(&'static str, String)> {
    let mut settings = kafka.to_vec();
    settings.extend([
        ("FLOODWAY_DATABASE_URL", "postgres://u:p@127.0.0.1:1/none".to_owned()),
        ("FLOODWAY_SEALING_KEY", "e2e:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=".to_owned()),
        ("FLOODWAY_CONTROL_PLANE__ADMIN_KEY", "e2e-admin-key-0123456789".to_owned()),
        ("FLOODWAY_CONTROL_PLANE__LISTEN", "127.0.0.1:0".to_owned()),
    ]);
    settings
}

fn with(
    settings: Vec<(&'static str, String)>,
    changes: &[(&'static str, &str)],
) -> Vec<(&'static str, String)> {
    let kept = settings.into_iter().filter(|(name, _)| changes.iter().all(|(changed, _)| changed != name));
    kept.chain(changes.iter().map(|(name, value)| (*name, (*value).to_owned()))).collect()
}

/// A folder with the certificate of an authority that signed nothing here.
async fn strange_authority() -> Result<std::path::PathBuf> {
    let folder = std::env::temp_dir().join(format!("floodway-strangers-{:08x}", rand::random::<u32>()));
    tokio::fs::create_dir_all(&folder).await?;
    let arguments =
        "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=Strangers -keyout key.pem -out ca.pem";
    let made = Command::new("openssl").args(arguments.split(' ')).current_dir(&folder).output().await?;
    ensure!(made.status.success(), "openssl: {}", String::from_utf8_lossy(&made.stderr));
    Ok(folder)
}

/// The line of a report that has the words.
fn reason<'a>(report: &'a str, words: &[&str]) -> &'a str {
    report.lines().find(|line| words.iter().all(|word| line.contains(word))).unwrap_or_default().trim()
}
