//! The whole description, made from the table of routes.

use std::collections::BTreeMap;

use http::{Method, StatusCode};
use utoipa::openapi::path::{HttpMethod, Operation, OperationBuilder};
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme};
use utoipa::openapi::tag::TagBuilder;
use utoipa::openapi::{
    Components, ComponentsBuilder, InfoBuilder, LicenseBuilder, OpenApi, OpenApiBuilder, Paths,
    Ref, RefOr, Response, ResponsesBuilder, ServerBuilder,
};

use super::answer::Answer;
use super::description::{Description, Tag};
use super::header::Answered;
use super::{parameter, resource};
use crate::transport::problem::Kind;

/// The name of the one way in.
const BEARER: &str = "bearer";

/// Who may use a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Everybody.
    Everybody,
    /// The bearer of a token.
    Bearer,
}

/// A route as it is described.
pub struct Described<'a> {
    /// Its method.
    pub method: &'a Method,
    /// Its path, with names in braces.
    pub template: &'a str,
    /// Who may use it.
    pub access: Access,
    /// What is said of it.
    pub description: Description,
}

/// The description of these routes, in their order.
pub fn document<'a>(routes: impl IntoIterator<Item = Described<'a>>) -> OpenApi {
    let mut paths = Paths::new();
    let mut problems = Problems::default();
    for route in routes {
        let template = route.template;
        let method = http_method(route.method);
        let operation = operation(route, &mut problems);
        if matches!(method, HttpMethod::Get) {
            let head = head_of(&operation, &problems);
            paths.add_path_operation(template, vec![HttpMethod::Head], head);
        }
        paths.add_path_operation(template, vec![method], operation);
    }
    OpenApiBuilder::new()
        .info(info())
        .servers(Some([ServerBuilder::new()
            .url("/")
            .description(Some("This node."))
            .build()]))
        .tags(Some(Tag::ALL.map(tag)))
        .paths(paths)
        .components(Some(components(problems)))
        .build()
}

fn info() -> InfoBuilder {
    InfoBuilder::new()
        .title("Holdfast")
        .version(env!("CARGO_PKG_VERSION"))
        .description(Some(include_str!("introduction.md")))
        .license(Some(
            LicenseBuilder::new()
                .name(env!("CARGO_PKG_LICENSE"))
                .build(),
        ))
}

fn tag(tag: Tag) -> utoipa::openapi::Tag {
    let (name, description) = tag.text();
    TagBuilder::new()
        .name(name)
        .description(Some(description))
        .build()
}

fn http_method(method: &Method) -> HttpMethod {
    match *method {
        Method::GET => HttpMethod::Get,
        Method::PUT => HttpMethod::Put,
        Method::POST => HttpMethod::Post,
        Method::PATCH => HttpMethod::Patch,
        Method::DELETE => HttpMethod::Delete,
        ref other => panic!("no route has the method {other}"),
    }
}

/// The answers that tell of problems, each said once and referred to.
#[derive(Default)]
struct Problems(BTreeMap<String, Response>);

impl Problems {
    /// The answer of these kinds, which have one status.
    fn reference(&mut self, kinds: &[Kind]) -> Ref {
        let name = component_name(kinds);
        self.0
            .entry(name.clone())
            .or_insert_with(|| Answer::problem(kinds).finish().1);
        Ref::from_response_name(name)
    }

    /// The answer a reference stands for.
    fn find(&self, reference: &Ref) -> Option<&Response> {
        let name = reference.ref_location.rsplit('/').next()?;
        self.0.get(name)
    }
}

/// `BadParameterOrBadHeader` of these two kinds.
fn component_name(kinds: &[Kind]) -> String {
    let camel = |kind: &Kind| -> String {
        let words = kind.name().split('-');
        words.map(parameter::capitalised).collect()
    };
    kinds.iter().map(camel).collect::<Vec<_>>().join("Or")
}

fn operation(route: Described<'_>, problems: &mut Problems) -> Operation {
    let Description {
        id,
        tag,
        summary,
        text,
        parameters,
        body,
        answers,
        problems: own,
    } = route.description;
    let mut responses = ResponsesBuilder::new();
    let mut answered = Vec::new();
    let limited = |answer: Answer| match route.access {
        Access::Everybody => answer,
        Access::Bearer => answer.sometimes(&[Answered::RateLimit, Answered::RateLimitPolicy]),
    };
    for (status, response) in answers.into_iter().map(|answer| limited(answer).finish()) {
        answered.push(status);
        responses = responses.response(status.as_str(), response);
    }
    for (status, kinds) in by_status(own.into_iter().chain(any_request(route.access))) {
        // A status that has more to say than its kinds do is among the answers.
        if !answered.contains(&status) {
            responses = responses.response(status.as_str(), problems.reference(&kinds));
        }
    }
    let operation = OperationBuilder::new()
        .operation_id(Some(id))
        .tag(tag.text().0)
        .summary(Some(summary))
        .description(Some(text))
        .parameters(Some(
            parameters.into_iter().chain(parameter::of_every_request()),
        ))
        .request_body(body)
        .responses(responses);
    match route.access {
        Access::Everybody => operation.securities(Some(Vec::new())),
        Access::Bearer => {
            operation.security(SecurityRequirement::new(BEARER, Vec::<String>::new()))
        }
    }
    .build()
}

/// What any request may meet.
fn any_request(access: Access) -> Vec<Kind> {
    match access {
        Access::Everybody => vec![
            Kind::MalformedRequest,
            Kind::HeadersTooLarge,
            Kind::Internal,
            Kind::TimedOut,
        ],
        Access::Bearer => vec![
            Kind::MalformedRequest,
            Kind::HeadersTooLarge,
            Kind::Unauthorized,
            Kind::TooManyRequests,
            Kind::Internal,
            Kind::Unavailable,
            Kind::TooManyConnections,
            Kind::TimedOut,
        ],
    }
}

/// Kinds by their status, each once, in the order of [`Kind::ALL`], so that the same ones meet in the same answer.
fn by_status(kinds: impl IntoIterator<Item = Kind>) -> BTreeMap<StatusCode, Vec<Kind>> {
    let wanted: Vec<Kind> = kinds.into_iter().collect();
    let mut by_status: BTreeMap<StatusCode, Vec<Kind>> = BTreeMap::new();
    for kind in Kind::ALL.into_iter().filter(|kind| wanted.contains(kind)) {
        by_status.entry(kind.describe().2).or_default().push(kind);
    }
    by_status
}

/// Whatever can be read can be asked about: the same without bodies.
fn head_of(get: &Operation, problems: &Problems) -> Operation {
    let mut head = get.clone();
    head.operation_id = get.operation_id.as_ref().map(|id| format!("{id}Head"));
    head.summary = get
        .summary
        .as_ref()
        .map(|summary| format!("{summary} (headers only)"));
    head.description = Some("The same as `GET`, without the body.".to_owned());
    for response in head.responses.responses.values_mut() {
        let whole = match response {
            RefOr::T(response) => Some(&*response),
            RefOr::Ref(reference) => problems.find(reference),
        };
        let mut bodiless = whole.cloned().unwrap_or_default();
        bodiless.content.clear();
        bodiless.links.clear();
        *response = RefOr::T(bodiless);
    }
    head
}

fn components(mut problems: Problems) -> Components {
    let mut components = ComponentsBuilder::new()
        .schemas_from_iter(resource::all())
        .security_scheme(BEARER, bearer());
    for header in Answered::ALL {
        components = components.header(header.name(), header.always());
    }
    // What another method than a path has is answered belongs to no operation.
    problems.reference(&[Kind::MethodNotAllowed]);
    for (name, response) in problems.0 {
        components = components.response(name, response);
    }
    components.build()
}

fn bearer() -> SecurityScheme {
    let scheme = HttpBuilder::new()
        .scheme(HttpAuthScheme::Bearer)
        .bearer_format("JWT")
        .description(Some(
            "A JSON Web Token of the issuer this node trusts, signed with HS256, RS256, ES256 or EdDSA. `sub` and `exp` \
             are required. `sid`, else `jti`, names the session.",
        ));
    SecurityScheme::Http(scheme.build())
}
