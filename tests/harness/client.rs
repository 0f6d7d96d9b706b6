//! A thin HTTP client that speaks the contract's paths.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use reqwest::{Method, RequestBuilder};
use serde_json::Value;

use crate::answer::Answer;

/// Above the longest `wait` of `/operations`, which is 60 s.
const TIMEOUT: Duration = Duration::from_secs(75);

/// Talks to one API process, with one user's token or none.
#[derive(Debug, Clone)]
pub struct Client {
    http: reqwest::Client,
    origin: String,
    token: Option<String>,
}

impl Client {
    /// A client with a token. `origin` is such as `http://127.0.0.1:8080`.
    ///
    /// # Panics
    /// When no HTTP client can be made, which needs no system resource.
    pub fn new(origin: &str, token: &str) -> Self {
        Self {
            token: Some(token.to_owned()),
            ..Self::anonymous(origin)
        }
    }

    /// A client without a token.
    ///
    /// # Panics
    /// As [`Client::new`].
    pub fn anonymous(origin: &str) -> Self {
        let http = reqwest::Client::builder()
            .no_proxy()
            .timeout(TIMEOUT)
            .build()
            .expect("without TLS there is nothing that could fail");
        Self {
            http,
            origin: origin.to_owned(),
            token: None,
        }
    }

    /// A request to a path below `/api/v1`, for more headers or another body.
    pub fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let request = self
            .http
            .request(method, format!("{}/api/v1{path}", self.origin));
        match &self.token {
            Some(token) => request.bearer_auth(token),
            None => request,
        }
    }

    /// Sends a request and reads the answer.
    ///
    /// # Errors
    /// When there is no whole answer.
    pub async fn send(&self, request: RequestBuilder) -> Result<Answer> {
        let started = Instant::now();
        let response = request.send().await.context("no answer")?;
        let status = response.status().as_u16();
        let headers = response.headers().clone();
        let body = response.text().await.context("the answer was cut off")?;
        Ok(Answer::new(status, headers, body, started.elapsed()))
    }

    /// Creates a task.
    ///
    /// # Errors
    /// As [`Client::send`].
    pub async fn create_task(&self, task: &Value) -> Result<Answer> {
        self.post("/tasks", task).await
    }

    /// Reads a path below `/api/v1`.
    ///
    /// # Errors
    /// As [`Client::send`].
    pub async fn get(&self, path: &str) -> Result<Answer> {
        self.send(self.request(Method::GET, path)).await
    }

    /// Reads a path outside `/api/v1`, without the token.
    ///
    /// # Errors
    /// As [`Client::send`].
    pub async fn get_outside(&self, path: &str) -> Result<Answer> {
        self.send(self.outside(path)).await
    }

    /// A request for a path outside `/api/v1`, without the token, for more headers.
    pub fn outside(&self, path: &str) -> RequestBuilder {
        self.http.get(format!("{}{path}", self.origin))
    }

    /// Asks about a path outside `/api/v1`, without the token.
    ///
    /// # Errors
    /// As [`Client::send`].
    pub async fn head_outside(&self, path: &str) -> Result<Answer> {
        self.send(self.http.head(format!("{}{path}", self.origin)))
            .await
    }

    /// Posts JSON.
    ///
    /// # Errors
    /// As [`Client::send`].
    pub async fn post(&self, path: &str, body: &Value) -> Result<Answer> {
        self.send(self.request(Method::POST, path).json(body)).await
    }

    /// Puts JSON.
    ///
    /// # Errors
    /// As [`Client::send`].
    pub async fn put(&self, path: &str, body: &Value) -> Result<Answer> {
        self.send(self.request(Method::PUT, path).json(body)).await
    }

    /// Sends a JSON Merge Patch.
    ///
    /// # Errors
    /// As [`Client::send`].
    pub async fn patch(&self, path: &str, patch: &Value) -> Result<Answer> {
        let request = self.request(Method::PATCH, path).json(patch);
        let request = request.header("content-type", "application/merge-patch+json");
        self.send(request).await
    }

    /// Deletes.
    ///
    /// # Errors
    /// As [`Client::send`].
    pub async fn delete(&self, path: &str) -> Result<Answer> {
        self.send(self.request(Method::DELETE, path)).await
    }

    /// Asks what became of an operation, waiting up to `wait_seconds` (at most
    /// 60) for an end state.
    ///
    /// # Errors
    /// As [`Client::send`].
    pub async fn operation(&self, id: &str, wait_seconds: u32) -> Result<Answer> {
        self.get(&format!("/operations/{id}?wait={wait_seconds}"))
            .await
    }
}
