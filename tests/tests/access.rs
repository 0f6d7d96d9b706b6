//! Does nobody get in who shouldn't, and is nobody shown what isn't theirs?

use anyhow::Result;
use holdfast_tests::tokens::{self, KeyPair};
use holdfast_tests::{Client, Node, Program};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use uuid::Uuid;

struct Site {
    api: Program,
    client: Client,
    _node: Node,
}

/// An API in embedded mode, which checks tokens as any other.
async fn start() -> Result<Site> {
    let node = Node::new()?;
    let api = node.start_api().await?;
    let client = api.client(&tokens::valid("somebody"));
    Ok(Site {
        api,
        client,
        _node: node,
    })
}

#[tokio::test]
async fn another_users_task_is_404_whatever_is_tried() -> Result<()> {
    let site = start().await?;
    let created = site.client.create_task(&json!({"title": "mine"})).await?;
    let path = format!("/tasks/{}", created.expect(201).id());
    let stranger = site.api.client(&tokens::valid("stranger"));
    stranger.get(&path).await?.expect_problem(404);
    stranger
        .patch(&path, &json!({"title": "theirs"}))
        .await?
        .expect_problem(404);
    stranger
        .put(&path, &json!({"title": "theirs"}))
        .await?
        .expect_problem(404);
    stranger.delete(&path).await?.expect_problem(404);
    let list = stranger.get("/tasks").await?;
    assert_eq!(list.expect(200).json()["items"], json!([]));
    let mine = site.client.get(&path).await?;
    assert_eq!(mine.expect(200).json()["title"], "mine");
    Ok(())
}

#[tokio::test]
async fn bad_tokens_are_401_and_say_how_to_authenticate() -> Result<()> {
    let site = start().await?;
    let rs256 = KeyPair::Rs256.sign(&tokens::claims("somebody"), None)?;
    let mut eternal = tokens::claims("somebody");
    eternal.as_object_mut().map(|claims| claims.remove("exp"));
    let mut nobody = tokens::claims("somebody");
    nobody.as_object_mut().map(|claims| claims.remove("sub"));
    let mut early = tokens::claims("somebody");
    early["nbf"] = json!(chrono::Utc::now().timestamp() + 120);
    let bad = [
        ("expired", tokens::expired("somebody")),
        ("unsigned", tokens::unsigned("somebody")),
        ("foreign", tokens::foreign("somebody")),
        ("tampered", tokens::tampered("somebody")),
        ("of another family", rs256),
        ("without exp", tokens::hs256(tokens::SECRET, &eternal)),
        ("without sub", tokens::hs256(tokens::SECRET, &nobody)),
        ("with an empty sub", tokens::valid("")),
        ("with an endless sub", tokens::valid(&"x".repeat(256))),
        ("not valid yet", tokens::hs256(tokens::SECRET, &early)),
        ("nonsense", String::from("a.b.c")),
        ("dots", String::from("...")),
    ];
    for (kind, token) in bad {
        let client = site.api.client(&token);
        for answer in [
            client.get("/tasks").await?,
            client.create_task(&json!({"title": "x"})).await?,
        ] {
            assert_eq!(
                answer.status(),
                401,
                "a token {kind} got in: {}",
                answer.text()
            );
            answer.expect_problem(401);
            let challenge = answer.expect_header("www-authenticate");
            assert!(challenge.starts_with("Bearer"), "{kind}: {challenge}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn no_token_is_401_everywhere_under_the_base_path() -> Result<()> {
    let site = start().await?;
    let anonymous = site.api.anonymous();
    let task = format!("/tasks/{}", Uuid::new_v4());
    for path in ["/tasks", &task, "/profile", "/operations", "/sessions"] {
        let answer = anonymous.get(path).await?;
        answer.expect_problem(401);
        answer.expect_header("www-authenticate");
    }
    for scheme in ["Basic c29tZWJvZHk6cGFzcw==", "Bearer", "Bearer ", "token"] {
        let request = anonymous
            .request(Method::GET, "/tasks")
            .header("authorization", scheme);
        anonymous.send(request).await?.expect_problem(401);
    }
    for open in ["/livez", "/readyz", "/health", "/metrics"] {
        let answer = anonymous.get_outside(open).await?;
        assert_eq!(answer.status(), 200, "{open}: {}", answer.text());
    }
    Ok(())
}

#[tokio::test]
async fn tokens_of_each_key_family_get_in_and_others_dont() -> Result<()> {
    for pair in KeyPair::ALL {
        let mut node = Node::new()?;
        node.unset("JWT_SECRET");
        node.set(
            "JWT_PUBLIC_KEY_FILE",
            &pair.public_key_file().to_string_lossy(),
        );
        let api = node.start_api().await?;
        let good = pair.sign(&tokens::claims("somebody"), None)?;
        api.client(&good).get("/tasks").await?.expect(200);
        // The classic confusion: the public key, which everybody has, as a secret.
        let public = std::fs::read_to_string(pair.public_key_file())?;
        let confused = tokens::hs256(&public, &tokens::claims("somebody"));
        for bad in [
            confused,
            tokens::valid("somebody"),
            tokens::unsigned("somebody"),
        ] {
            api.client(&bad).get("/tasks").await?.expect_problem(401);
        }
    }
    Ok(())
}

#[tokio::test]
async fn keys_of_a_set_are_chosen_by_their_id() -> Result<()> {
    let mut node = Node::new()?;
    node.unset("JWT_SECRET");
    node.set(
        "JWT_JWKS_FILE",
        &tokens::fixture("keys/jwks.json").to_string_lossy(),
    );
    let api = node.start_api().await?;
    let ids = ["rs256", "es256", "eddsa"];
    for (pair, id) in KeyPair::ALL.into_iter().zip(ids) {
        let token = pair.sign(&tokens::claims("somebody"), Some(id))?;
        api.client(&token).get("/tasks").await?.expect(200);
        let of_another = ids.into_iter().find(|other| *other != id);
        let token = pair.sign(&tokens::claims("somebody"), of_another)?;
        api.client(&token).get("/tasks").await?.expect_problem(401);
        let token = pair.sign(&tokens::claims("somebody"), Some("unheard-of"))?;
        api.client(&token).get("/tasks").await?.expect_problem(401);
    }
    Ok(())
}

#[tokio::test]
async fn who_is_logged_out_while_sending_a_request_is_refused_at_its_end() -> Result<()> {
    let site = start().await?;
    let token = tokens::valid("somebody");
    let body = json!({"title": "too late"}).to_string();
    let head = format!(
        "POST /api/v1/tasks HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n\
         Content-Type: application/json\r\nExpect: 100-continue\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    let address = site.api.base_url().replace("http://", "");
    let mut stream = TcpStream::connect(&address).await?;
    stream.write_all(head.as_bytes()).await?;
    // Whoever is told to go on has been let in.
    let mut told = [0; 12];
    stream.read_exact(&mut told).await?;
    assert_eq!(&told, b"HTTP/1.1 100");
    let client = site.api.client(&token);
    client.delete("/sessions/current").await?.expect(204);
    stream.write_all(body.as_bytes()).await?;
    let mut answer = String::new();
    let mut rest = BufReader::new(stream);
    while !answer.contains("HTTP/1.1 4") {
        anyhow::ensure!(rest.read_line(&mut answer).await? > 0, "{answer}");
    }
    assert!(answer.contains("HTTP/1.1 401"), "{answer}");
    let list = site.client.get("/tasks").await?;
    assert_eq!(list.expect(200).json()["items"], json!([]));
    Ok(())
}

#[tokio::test]
async fn issuer_and_audience_are_required_when_configured() -> Result<()> {
    let node = Node::new()?
        .with("JWT_ISSUER", "https://issuer.example")
        .with("JWT_AUDIENCE", "tasks");
    let api = node.start_api().await?;
    let token = |issuer: Value, audience: Value| {
        let mut claims = tokens::claims("somebody");
        claims["iss"] = issuer;
        claims["aud"] = audience;
        tokens::hs256(tokens::SECRET, &claims)
    };
    let right = json!("https://issuer.example");
    for audience in [json!("tasks"), json!(["other", "tasks"])] {
        api.client(&token(right.clone(), audience))
            .get("/tasks")
            .await?
            .expect(200);
    }
    let wrong = [
        tokens::valid("somebody"),
        token(json!("https://other.example"), json!("tasks")),
        token(json!(7), json!("tasks")),
        token(right.clone(), json!("other")),
        token(right, Value::Null),
    ];
    for token in wrong {
        api.client(&token).get("/tasks").await?.expect_problem(401);
    }
    Ok(())
}
