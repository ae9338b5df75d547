"""OpenAPI 3.1, from the route table and the types: what is served is what is described."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from importlib.metadata import version
from typing import Any

from flowdsl.binding import Deployment
from flowdsl.codec.forms import field_types
from flowdsl.codec.records import declared
from flowdsl.definition import Workflow
from flowdsl.service.problem import MEDIA_TYPE, ProblemDetails
from flowdsl.service.route import INPUT, Route
from flowdsl.service.schema import Schema, Schemas

_WORDS = {
    400: "The request is malformed.",
    401: "No credentials, or wrong ones.",
    403: "The caller's role does not allow it.",
    404: "There is none, or it is another tenant's.",
    408: "The body came too slowly.",
    409: "The state does not allow it: `state` says which it is.",
    413: "The body is too large.",
    415: "The body is not JSON.",
    422: "A field does not fit: `errors` says which, and why.",
    429: "Too many at once, or too many wrong keys: `Retry-After` says when to come again.",
    503: "The database is away.",
}


def openapi(routes: Iterable[Route], deployment: Deployment, *, keyed: bool = True) -> Schema:
    """The whole document. `keyed`: whether callers show a key; in development mode they need none."""
    schemas, paths = Schemas(), dict[str, Schema]()
    for route in routes:
        for path, workflow in _paths(route, deployment):
            paths.setdefault(path, {})[route.method.lower()] = _operation(route, workflow, schemas, keyed=keyed)
    schemes = {"key": {"type": "http", "scheme": "bearer", "description": "An API key: it names the tenant and the role."}}
    return {
        "openapi": "3.1.0",
        "info": {"title": "flowdsl", "version": version("flowdsl"), "description": "Durable workflows: start them, look at them, intervene."},
        "paths": paths,
        "components": {"schemas": schemas.components, "securitySchemes": schemes},
    }


def _paths(route: Route, deployment: Deployment) -> Iterator[tuple[str, Workflow[Any, Any, Any] | None]]:
    """The paths of a route: where the input depends on the workflow, one for each."""
    if route.request != INPUT:
        yield route.path, None
        return
    for name in sorted(deployment.names):
        yield route.path.replace("{name}", name), deployment.workflow(name)


def _operation(route: Route, workflow: Workflow[Any, Any, Any] | None, schemas: Schemas, *, keyed: bool) -> Schema:
    operation: Schema = {
        "operationId": route.name if workflow is None else f"{route.name} {workflow.name}",
        "summary": route.summary,
        "x-role": route.rule,
        "parameters": list(_parameters(route, workflow, schemas)),
        "responses": _responses(route, schemas),
    }
    if keyed and route.rule != "anyone":
        operation["security"] = [{"key": []}]
    if route.request is not None:
        form = route.request if workflow is None else workflow.shape.request
        content: Schema = {"schema": schemas.of(form)}
        if route.example is not None:
            content["example"] = route.example
        operation["requestBody"] = {"required": not route.may_be_empty, "content": {"application/json": content}}
    return operation


def _parameters(route: Route, workflow: Workflow[Any, Any, Any] | None, schemas: Schemas) -> Iterator[Schema]:
    for name in route.parameters if workflow is None else ():
        yield {"name": name, "in": "path", "required": True, "schema": {"type": "string", **({"format": "uuid"} if name == "id" else {})}}
    if route.query is not None:
        types = field_types(route.query)
        for each in declared(route.query):
            yield {"name": each.key, "in": "query", "required": each.required, "schema": _given(schemas.of(types[each.name]))}
    for name, about in route.headers.items():
        yield {"name": name, "in": "header", "required": False, "description": about, "schema": {"type": "string", "minLength": 1}}
    if route.rule != "anyone":
        about = "The tenant, which must be that of the key. In development mode it is believed."
        tenant: Schema = {"type": "string", "minLength": 1, "maxLength": 200}
        yield {"name": "X-Tenant-ID", "in": "header", "required": False, "description": about, "schema": tenant}


def _given(schema: Schema) -> Schema:
    """Of a parameter that may be left out: there is no null in a query."""
    members = [one for one in schema.get("anyOf", ()) if one != {"type": "null"}]
    return members[0] if len(members) == 1 else schema


def _responses(route: Route, schemas: Schemas) -> Schema:
    found: Schema = {}
    for status, form in sorted(route.answers.items()):
        content = {route.media: {"schema": {} if form is None else schemas.of(form)} if route.media == "application/json" else {}}
        about = (form.__doc__ or "").partition("\n")[0] if form is not None else route.summary
        found[str(status)] = {"description": about, "content": content}
    asked = () if route.rule == "anyone" else (400, 401, 403, 429)
    problems = {422, 503, *route.problems, *asked, *(() if route.request is None else (400, 408, 413, 415))}
    for status in sorted(problems - set(route.answers)):
        found[str(status)] = {"description": _WORDS[status], "content": {MEDIA_TYPE: {"schema": schemas.of(ProblemDetails)}}}
    return found


__all__ = ["openapi"]
