//! Connections to Redis.

use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, Cmd, RedisResult, Value};

/// How to reach the store, and what of its settings the counters need.
#[derive(Clone, Debug)]
pub struct RedisOptions {
    /// `redis://[user[:password]@]host[:port][/database]`.
    pub url: String,
    /// Begins every key.
    pub prefix: String,
    /// The longest a decision may wait for the store.
    pub timeout: Duration,
    /// How long a running call's slot outlives its gateway.
    pub slot_lease: Duration,
}

/// One connection, on which commands are pipelined.
#[derive(Clone, Debug)]
pub struct Connection(MultiplexedConnection);

impl Connection {
    /// Sends a command, and waits for its reply.
    ///
    /// # Errors
    /// What the server or the socket says.
    pub async fn send(&mut self, command: &Cmd) -> RedisResult<Value> {
        self.0.send_packed_command(command).await?.extract_error()
    }
}

/// Makes connections.
#[derive(Clone, Debug)]
pub struct Connector {
    client: Client,
    options: RedisOptions,
}

impl Connector {
    /// A connector; connects to nothing yet.
    ///
    /// # Errors
    /// When the address cannot be read.
    pub fn new(options: RedisOptions) -> RedisResult<Self> {
        Ok(Self {
            client: Client::open(&*options.url)?,
            options,
        })
    }

    /// The settings.
    #[must_use]
    pub fn options(&self) -> &RedisOptions {
        &self.options
    }

    /// A new connection.
    ///
    /// # Errors
    /// When there is none within half a second.
    pub async fn connect(&self) -> RedisResult<Connection> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(Duration::from_millis(500)))
            .set_response_timeout(None);
        let connection = self
            .client
            .get_multiplexed_async_connection_with_config(&config)
            .await?;
        Ok(Connection(connection))
    }
}
