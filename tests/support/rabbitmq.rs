//! Starts private RabbitMQ nodes.

use std::io::Write as _;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tempfile::TempDir;

use super::guard::{Guarded, tail};
use super::port;
use super::programs::server_command;

/// The secret that nodes and callers show to each other.
const COOKIE: &str = "unstale";

/// The name under which users and virtual hosts are changed, as an Erlang term.
const ACTOR: &str = "<<\"tests\">>";

/// Returns a connection. Without the time limit, lapin waits for ever for a handshake that a dying
/// or booting node has abandoned.
///
/// # Errors
/// Returns an error if there is no connection within 10 s.
pub(crate) async fn connect(
    url: &str,
) -> Result<lapin::Connection, Box<dyn std::error::Error + Send + Sync>> {
    let connecting = lapin::Connection::connect(url, lapin::ConnectionProperties::default());
    Ok(tokio::time::timeout(Duration::from_secs(10), connecting).await??)
}

/// A node with its own name, ports, data, cookie and epmd, and no plugins unless asked for.
#[derive(Debug)]
pub(crate) struct RabbitMq {
    amqp_port: u16,
    dist_port: u16,
    /// Declared before `folder`, so that the server ends before its files are removed.
    process: Mutex<Option<Guarded>>,
    epmd: Arc<Epmd>,
    /// Hours by which its clock is ahead of the test's clock.
    hours_ahead: i32,
    folder: TempDir,
}

/// The port mapper through which Erlang nodes find each other.
#[derive(Debug)]
struct Epmd {
    port: u16,
    process: Guarded,
    _folder: TempDir,
}

impl RabbitMq {
    pub(crate) async fn start() -> Self {
        Self::start_with(&[], "").await
    }

    /// Starts a node with plugins (such as `rabbitmq_management`) and more lines for its
    /// `rabbitmq.conf`.
    pub(crate) async fn start_with(plugins: &[&str], config: &str) -> Self {
        let node = Self::prepared(Arc::new(Epmd::start().await), plugins);
        node.configure(config);
        node.launch().await;
        node
    }

    /// Starts a node with a clock that many hours ahead of the test's clock.
    pub(crate) async fn start_at(hours_ahead: i32) -> Self {
        let node = Self { hours_ahead, ..Self::prepared(Arc::new(Epmd::start().await), &[]) };
        node.configure("");
        node.launch().await;
        node
    }

    /// Starts a cluster of three nodes. It takes half a minute on two cores.
    pub(crate) async fn start_cluster() -> [Self; 3] {
        let epmd = Arc::new(Epmd::start().await);
        let nodes = std::array::from_fn(|_| Self::prepared(Arc::clone(&epmd), &[]));
        let members = |nodes: &[Self; 3]| -> String {
            let lines = (1..).zip(nodes).map(|(at, node)| {
                format!("cluster_formation.classic_config.nodes.{at} = {}\n", node.name())
            });
            lines.collect()
        };
        let config = format!(
            "cluster_formation.peer_discovery_backend = classic_config\n{}",
            members(&nodes)
        );
        for node in &nodes {
            node.configure(&config);
            // A message that a retry queue was passing on when the leader died is passed on again
            // after this time. The default is three minutes.
            let advanced = "[{rabbit, [{dead_letter_worker_publisher_confirm_timeout, 5000}]}].\n";
            std::fs::write(node.folder.path().join("advanced.config"), advanced)
                .expect("the folder is ours");
        }
        let [one, two, three] = &nodes;
        tokio::join!(one.launch(), two.launch(), three.launch());
        one.ctl(&["await_online_nodes", "3", "--timeout", "60"]).await;
        nodes
    }

    /// Returns a node that does not run yet.
    fn prepared(epmd: Arc<Epmd>, plugins: &[&str]) -> Self {
        let folder = folder();
        std::fs::write(
            folder.path().join("enabled_plugins"),
            format!("[{}].\n", plugins.join(",")),
        )
        .expect("the folder is ours");
        // All nodes have the same cookie, so that nodes of one epmd can connect.
        let cookie = folder.path().join(".erlang.cookie");
        std::fs::write(&cookie, COOKIE).expect("the folder is ours");
        std::fs::set_permissions(&cookie, std::fs::Permissions::from_mode(0o400))
            .expect("the file is ours");
        Self {
            amqp_port: port::free(),
            dist_port: port::free(),
            process: Mutex::new(None),
            epmd,
            hours_ahead: 0,
            folder,
        }
    }

    fn configure(&self, config: &str) {
        // By default RabbitMQ needs 50 MB of free disk space. A full test machine would block every
        // publisher.
        let config = format!("disk_free_limit.absolute = 1MB\n{config}\n");
        std::fs::write(self.folder.path().join("rabbitmq.conf"), config)
            .expect("the folder is ours");
    }

    /// Returns its Erlang name.
    pub(crate) fn name(&self) -> String {
        format!("unstale-{}@localhost", self.amqp_port)
    }

    async fn launch(&self) {
        let log = self.folder.path().join("log");
        let output =
            std::fs::File::options().create(true).append(true).open(&log).expect("the log opens");
        let mut command = self.command("rabbitmq-server");
        command.envs(super::clock::settings(self.hours_ahead, self.folder.path()));
        command.stdout(output.try_clone().expect("the log opens")).stderr(output);
        let mut process = Guarded::spawn(command, Some(self.folder.path()));
        super::wait_until(
            Duration::from_secs(90),
            "rabbitmq-server takes an AMQP connection",
            async || {
                if let Some(status) = process.exited() {
                    panic!("rabbitmq-server ended at start with {status}:\n{}", tail(&log));
                }
                self.answers().await
            },
        )
        .await;
        *self.process.lock().unwrap() = Some(process);
    }

    async fn answers(&self) -> bool {
        // A plain connection comes first: it costs nothing while the node boots.
        if tokio::net::TcpStream::connect(("127.0.0.1", self.amqp_port)).await.is_err() {
            return false;
        }
        let Ok(connection) = connect(&self.url()).await else { return false };
        let opened = connection.create_channel().await.is_ok();
        let _ = connection.close(200, "bye".into()).await;
        opened
    }

    /// Returns a command that runs one of the node's own scripts in the node's environment.
    fn command(&self, script: &str) -> Command {
        let folder = |name: &str| self.folder.path().join(name);
        let mut command = server_command(script);
        command
            .env_clear()
            .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/opt/homebrew/sbin:/opt/homebrew/bin")
            .env("LANG", "C.UTF-8")
            .env("HOME", self.folder.path())
            .env("ERL_EPMD_PORT", self.epmd.port.to_string())
            .env("RABBITMQ_NODENAME", self.name())
            .env("RABBITMQ_NODE_IP_ADDRESS", "127.0.0.1")
            .env("RABBITMQ_NODE_PORT", self.amqp_port.to_string())
            .env("RABBITMQ_DIST_PORT", self.dist_port.to_string())
            .env("RABBITMQ_MNESIA_BASE", folder("mnesia"))
            .env("RABBITMQ_LOG_BASE", folder("logs"))
            .env("RABBITMQ_PID_FILE", folder("pid"))
            .env("RABBITMQ_ENABLED_PLUGINS_FILE", folder("enabled_plugins"))
            .env("RABBITMQ_CONFIG_FILE", folder("rabbitmq.conf"))
            .env("RABBITMQ_CONF_ENV_FILE", folder("no-env.conf"))
            .env("RABBITMQ_ADVANCED_CONFIG_FILE", folder("advanced.config"))
            // Makes the script become the Erlang VM instead of waiting for it, so that its pid is
            // the server's.
            .env("RUNNING_UNDER_SYSTEMD", "true")
            // Idle schedulers must not spin: the tests share their cores with other servers.
            .env(
                "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS",
                "+sbwt none +sbwtdcpu none +sbwtdio none -kernel inet_dist_use_interface {127,0,0,1}",
            );
        command
    }

    pub(crate) fn amqp_port(&self) -> u16 {
        self.amqp_port
    }

    pub(crate) fn addr(&self) -> String {
        format!("127.0.0.1:{}", self.amqp_port)
    }

    /// Returns the URL of the default virtual host for `guest`, who has all permissions.
    pub(crate) fn url(&self) -> String {
        self.url_as("guest", "guest", "/")
    }

    pub(crate) fn url_as(&self, user: &str, password: &str, vhost: &str) -> String {
        url_at(&self.addr(), user, password, vhost)
    }

    pub(crate) async fn connection(&self) -> lapin::Connection {
        connect(&self.url()).await.expect("RabbitMQ takes a connection")
    }

    /// Evaluates Erlang expressions in this node, and returns the value of the last one as text.
    /// Panics if it fails. It takes some milliseconds.
    pub(crate) async fn eval(&self, expressions: &str) -> String {
        // Under load the node may be slow to take the connection.
        let output = super::wait_for(Duration::from_secs(30), "erl_call connects", async || {
            let output = self.erl_call(expressions).await;
            let refused = String::from_utf8_lossy(&output.stderr).contains("failed to connect");
            (!refused).then_some(output)
        })
        .await;
        let text = String::from_utf8_lossy(&output.stdout);
        match text.strip_prefix("{ok, ").and_then(|text| text.strip_suffix('}')) {
            Some(value) if output.status.success() => value.to_owned(),
            _ => panic!("{expressions}: {text}{}", String::from_utf8_lossy(&output.stderr)),
        }
    }

    async fn erl_call(&self, expressions: &str) -> Output {
        let mut command = self.command("erl_call");
        command.args(["-sname", &self.name(), "-c", COOKIE, "-e"]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut process = command.spawn().expect("erl_call runs");
        let mut input = process.stdin.take().expect("it is piped");
        // It reads nothing if it cannot connect.
        let _ = writeln!(input, "{expressions}");
        drop(input);
        let output = tokio::task::spawn_blocking(move || process.wait_with_output()).await;
        output.expect("no panic").expect("erl_call runs")
    }

    /// Runs `rabbitmqctl` against this node and returns its output. Panics if it fails. It takes
    /// one or two seconds of CPU, so prefer [`eval`](Self::eval) for what many tests do.
    pub(crate) async fn ctl(&self, args: &[&str]) -> String {
        let mut command = self.command("rabbitmqctl");
        command.arg("--quiet").args(args).stdin(Stdio::null());
        let output = tokio::task::spawn_blocking(move || command.output())
            .await
            .expect("no panic")
            .expect("rabbitmqctl runs");
        let (stdout, stderr) =
            (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(
            output.status.success(),
            "rabbitmqctl {}: {}\n{stdout}{stderr}",
            args.join(" "),
            output.status
        );
        stdout.into_owned()
    }

    /// Adds a virtual host in which `guest` has all permissions, and returns its URL.
    pub(crate) async fn add_vhost(&self, vhost: &str) -> String {
        let added = self.eval(&format!("rabbit_vhost:add({}, {ACTOR}).", binary(vhost))).await;
        assert_eq!(added, "ok");
        self.permit("guest", vhost, [".*", ".*", ".*"]).await;
        self.url_as("guest", "guest", vhost)
    }

    /// Adds a user that may do nothing yet.
    pub(crate) async fn add_stranger(&self, user: &str, password: &str) {
        let (user, password) = (binary(user), binary(password));
        let add = format!("rabbit_auth_backend_internal:add_user({user}, {password}, {ACTOR}).");
        assert_eq!(self.eval(&add).await, "ok");
    }

    /// Gives a user these permissions in a virtual host, as regular expressions: configure, write,
    /// read. Open channels notice within a second.
    pub(crate) async fn permit(&self, user: &str, vhost: &str, permissions: [&str; 3]) {
        let [configure, write, read] = permissions.map(binary);
        let (user, vhost) = (binary(user), binary(vhost));
        let permit = format!(
            "rabbit_auth_backend_internal:set_permissions({user}, {vhost}, {configure}, {write}, {read}, {ACTOR})."
        );
        assert_eq!(self.eval(&permit).await, "ok");
    }

    /// Adds a user with these permissions (regular expressions: configure, write, read) in a
    /// virtual host, and returns its URL.
    pub(crate) async fn add_user(
        &self,
        user: &str,
        password: &str,
        vhost: &str,
        permissions: [&str; 3],
    ) -> String {
        self.add_stranger(user, password).await;
        self.permit(user, vhost, permissions).await;
        self.url_as(user, password, vhost)
    }

    /// Returns one of the broker's figures for a queue, such as `messages_unacknowledged`; `None`
    /// without such a queue.
    pub(crate) async fn queue_figure(&self, queue: &str, figure: &str) -> Option<u32> {
        self.look(
            queue,
            &format!("proplists:get_value({figure}, rabbit_amqqueue:info(Q, [{figure}]))"),
        )
        .await
    }

    /// Returns the prefetch of a queue's only consumer; `None` if it has none.
    pub(crate) async fn prefetch(&self, queue: &str) -> Option<u32> {
        self.look(queue, "[Consumer] = rabbit_amqqueue:consumers(Q), element(4, Consumer)").await
    }

    /// Evaluates an expression about the queue `Q` of the default virtual host.
    async fn look(&self, queue: &str, expression: &str) -> Option<u32> {
        let name = format!("rabbit_misc:r(<<\"/\">>, queue, {})", binary(queue));
        let look =
            format!("catch begin {{ok, Q}} = rabbit_amqqueue:lookup({name}), {expression} end.");
        self.eval(&look).await.parse().ok()
    }

    /// Sets the memory above which the node blocks publishers, as a part of the machine's.
    pub(crate) async fn set_memory_limit(&self, part: f64) {
        let set = format!("vm_memory_monitor:set_vm_memory_high_watermark({part:.6}).");
        assert_eq!(self.eval(&set).await, "ok");
    }

    /// Flushes declarations to the disk. RabbitMQ writes Mnesia's log (absent in RabbitMQ 4.3) and
    /// the directory of quorum queues (a dets table) a moment late. So `kill -9` may undo a
    /// declaration, but never a confirmed message of a flushed queue.
    pub(crate) async fn flush_declarations(&self) {
        self.eval("catch mnesia:sync_log(), [ok = dets:sync(Table) || Table <- dets:all()], ok.")
            .await;
    }

    /// Sends `kill -9`, and waits for the end. Recent declarations may be lost: see
    /// [`flush_declarations`](Self::flush_declarations).
    pub(crate) fn kill(&self) {
        drop(self.process.lock().unwrap().take());
    }

    /// Kills it if it runs, and starts it again on the same ports and data.
    pub(crate) async fn restart(&self) {
        self.kill();
        self.launch().await;
    }

    /// Freezes the node until [`thaw`](Self::thaw). Its connections stay open, and it answers
    /// nothing.
    pub(crate) fn freeze(&self) {
        self.process.lock().unwrap().as_ref().expect("RabbitMQ runs").signal("STOP");
    }

    pub(crate) fn thaw(&self) {
        self.process.lock().unwrap().as_ref().expect("RabbitMQ runs").signal("CONT");
    }

    pub(crate) fn pid(&self) -> Option<u32> {
        self.process.lock().unwrap().as_ref().map(Guarded::pid)
    }
}

/// Returns an AMQP URL for `host:port`, such as a proxy's.
pub(crate) fn url_at(addr: &str, user: &str, password: &str, vhost: &str) -> String {
    let vhost = percent_encoding::utf8_percent_encode(vhost, percent_encoding::NON_ALPHANUMERIC);
    format!("amqp://{user}:{password}@{addr}/{vhost}")
}

/// Returns a text with any characters as an Erlang binary.
fn binary(text: &str) -> String {
    let bytes: Vec<String> = text.bytes().map(|byte| byte.to_string()).collect();
    format!("<<{}>>", bytes.join(","))
}

fn folder() -> TempDir {
    tempfile::Builder::new().prefix("unstale-rabbitmq-").tempdir().expect("a temporary folder")
}

impl Epmd {
    /// Starts epmd in the foreground on a private port. Otherwise the node would start an epmd that
    /// outlives it.
    async fn start() -> Self {
        let (port, folder) = (port::free(), folder());
        let mut command = server_command("epmd");
        command
            .args(["-address", "127.0.0.1", "-port", &port.to_string()])
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let process = Guarded::spawn(command, Some(folder.path()));
        let listens = async || tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_ok();
        super::wait_until(Duration::from_secs(10), "epmd listens", listens).await;
        Self { port, process, _folder: folder }
    }
}
