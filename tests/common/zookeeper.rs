//! A real ZooKeeper, started by scripts/zookeeper.

use std::io::{Read, Write};
use std::sync::LazyLock;
use std::time::Duration;

use zookeeper_client::{Acls, Client, CreateMode};

use super::eventually;
use super::server::Server;
use super::world::runtime;

pub struct Zookeeper(pub Server);

impl std::ops::Deref for Zookeeper {
    type Target = Server;
    fn deref(&self) -> &Server {
        &self.0
    }
}

impl std::ops::DerefMut for Zookeeper {
    fn deref_mut(&mut self) -> &mut Server {
        &mut self.0
    }
}

/// The one that the tests of a program share.
pub fn shared() -> &'static Zookeeper {
    static SHARED: LazyLock<Zookeeper> = LazyLock::new(Zookeeper::start);
    &SHARED
}

impl Zookeeper {
    pub fn start() -> Self {
        Self::with(Vec::new())
    }

    /// With lines of zoo.cfg.
    pub fn with(settings: Vec<String>) -> Self {
        let mut server = Self(Server::new("zookeeper", settings));
        server.restart();
        server
    }

    /// Starts it again on its data and its port.
    pub fn restart(&mut self) {
        self.0.launch();
        eventually("ZooKeeper serves", || {
            self.0.look_after();
            self.ask("srvr").filter(|answer| answer.contains("Mode:"))
        });
    }

    /// Waits until it serves.
    pub fn wait(&self) {
        eventually("ZooKeeper serves", || self.ask("srvr").filter(|answer| answer.contains("Mode:")));
    }

    /// A client of ZooKeeper's own protocol, for what no mount does.
    pub async fn client(&self) -> Client {
        Client::connect(&self.endpoint()).await.unwrap()
    }

    /// Makes a node as other tools do, with all rights for everybody, and the nodes above it.
    pub fn create(&self, path: &str, data: &str) {
        use zookeeper_client::Error;
        let options = CreateMode::Persistent.with_acls(Acls::anyone_all());
        let above = path.rsplit_once('/').map(|(above, _)| above).filter(|above| !above.is_empty());
        runtime().block_on(async {
            let client = self.client().await;
            loop {
                if let Some(above) = above {
                    match client.mkdir(above, &options).await {
                        // A mount may be taking an empty directory of locks away meanwhile.
                        Ok(()) | Err(Error::NodeExists | Error::NoNode) => {}
                        Err(error) => panic!("{above}: {error}"),
                    }
                }
                match client.create(path, data.as_bytes(), &options).await {
                    Err(Error::NoNode) if above.is_some() => {}
                    created => {
                        created.unwrap();
                        break;
                    }
                }
            }
        });
    }

    /// What a node holds.
    pub fn data(&self, path: &str) -> Option<Vec<u8>> {
        runtime().block_on(async {
            match self.client().await.get_data(path).await {
                Ok((data, _)) => Some(data),
                Err(zookeeper_client::Error::NoNode) => None,
                Err(error) => panic!("{path}: {error}"),
            }
        })
    }

    /// The answer to a four-letter word.
    pub fn ask(&self, word: &str) -> Option<String> {
        let mut stream = std::net::TcpStream::connect(self.endpoint()).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
        stream.write_all(word.as_bytes()).ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        Some(answer)
    }
}
