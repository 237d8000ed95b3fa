"""The documentation of the service: an OpenAPI 3.1 document, and a page without scripts made from it.

Tools that render OpenAPI load their scripts from third-party servers, so this page is plain HTML.
"""

import html
import json
from typing import Any

from efficientdet.serving.admission import Limits

_Json = dict[str, Any]


def model_facts(facts: Any, limits: Limits) -> _Json:
    """Describes the model, for /v1/model.

    Args:
        facts: an `application.Facts`.
        limits: limits of the service.
    """
    return {
        "model": facts.name,
        "version": facts.version,
        "classes": [category.name for category in facts.categories],
        "image_size": list(facts.image_size),
        "score_threshold": facts.score_threshold,
        "limits": {
            "max_upload_mb": limits.max_upload_mb,
            "max_images": limits.max_images,
            "max_megapixels": limits.max_megapixels,
        },
    }


def describe(facts: Any, limits: Limits) -> _Json:
    """Builds the OpenAPI document; takes the arguments of `model_facts`."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": f"EfficientDet: {facts.name}",
            "version": facts.version,
            "description": f"Detects {len(facts.categories)} classes of objects in images.",
        },
        "servers": [{"url": "."}],
        "paths": {
            "/v1/detect": {"post": _detect(facts, limits)},
            "/v1/model": {"get": _plain("Describes the model and the limits of the service.", "model", "Model")},
            "/healthz": {"get": _plain("Reports that the service is running.", "health", "Health")},
            "/metrics": {
                "get": {
                    "operationId": "metrics",
                    "summary": "Counters and timings for Prometheus.",
                    "responses": {"200": {"description": "Prometheus text format.", "content": {"text/plain": {}}}},
                }
            },
        },
        "components": {"schemas": _schemas()},
    }


def _detect(facts: Any, limits: Limits) -> _Json:
    binary = {"type": "string", "format": "binary"}
    image, form = {"schema": binary}, {"schema": {"type": "object", "additionalProperties": binary}}
    refusals = {
        "400": "The body is empty, or a form that is damaged or has a path as a file name.",
        "408": f"The body did not arrive within {limits.upload_seconds:g} s.",
        "413": f"The request has more than {limits.max_upload_mb:g} MB or {limits.max_images} images, "
        f"or an image has more than {limits.max_megapixels:g} million pixels.",
        "415": "The image format is not supported. Supported: JPEG, PNG, BMP, WebP, TIFF, GIF, AVIF, HEIC.",
        "422": "An image is damaged, or an option is not valid.",
        "503": "The service is overloaded; Retry-After says when to try again.",
    }
    return {
        "operationId": "detect",
        "summary": "Detects objects in one or more images.",
        "description": "Boxes are in pixels of the image, rotated upright according to its EXIF orientation. Only "
        "the first frame of an animation and the first page of a TIFF are used. If one of several images cannot be "
        "used, the whole request fails.",
        "parameters": [
            {
                "name": "score_threshold",
                "in": "query",
                "description": "Drop detections with a lower score.",
                "schema": {"type": "number", "minimum": 0, "maximum": 1, "default": facts.score_threshold},
            },
            {
                "name": "classes",
                "in": "query",
                "description": "Keep only these classes; separate names with commas or repeat the parameter.",
                "schema": {"type": "array", "items": {"type": "string"}},
                "style": "form",
                "explode": False,
            },
            *(
                {"name": name, "in": "query", "description": text, "schema": schema}
                for name, (text, schema) in _FURTHER.items()
            ),
        ],
        "requestBody": {
            "required": True,
            "description": "An image, a form with image files under any names, or JSON with base64 images. A form or "
            "JSON can also set the query parameters as fields.",
            "content": {
                "image/*": image,
                "application/octet-stream": image,
                "multipart/form-data": form,
                "application/json": {"schema": _JSON_BODY},
            },
        },
        "responses": {
            "200": {"description": "The detections, best first.", "content": _json_of("Detections")},
            **{
                status: {"description": text, "content": {"application/problem+json": _refers_to("Problem")}}
                for status, text in refusals.items()
            },
        },
    }


_FURTHER: dict[str, tuple[str, _Json]] = {
    "class_thresholds": (
        "Score thresholds for individual classes, such as person:0.5,dog:0.2.",
        {"type": "string"},
    ),
    "class_agnostic": (
        "Among boxes with an IoU of at least 0.5, keep only the best, regardless of class.",
        {"type": "boolean"},
    ),
    "max_detections": ("Maximum number of detections per image; the best are kept.", {"type": "integer", "minimum": 1}),
}
_BASE64: _Json = {"type": "string", "contentEncoding": "base64"}
_JSON_BODY: _Json = {
    "type": "object",
    "properties": {
        "image": _BASE64,
        "images": {"type": "array", "items": _BASE64},
        "score_threshold": {"type": "number"},
        "classes": {"type": "array", "items": {"type": "string"}},
        "class_thresholds": {"type": "object", "additionalProperties": {"type": "number"}},
        "class_agnostic": {"type": "boolean"},
        "max_detections": {"type": "integer"},
    },
}


def _plain(summary: str, name: str, schema: str) -> _Json:
    return {
        "operationId": name,
        "summary": summary,
        "responses": {"200": {"description": "Always.", "content": _json_of(schema)}},
    }


def _json_of(schema: str) -> _Json:
    return {"application/json": _refers_to(schema)}


def _refers_to(schema: str) -> _Json:
    return {"schema": {"$ref": f"#/components/schemas/{schema}"}}


def _schemas() -> _Json:
    def thing(**properties: _Json) -> _Json:
        return {"type": "object", "properties": properties, "required": list(properties)}

    def many(items: _Json) -> _Json:
        return {"type": "array", "items": items}

    text, number, whole = {"type": "string"}, {"type": "number"}, {"type": "integer"}
    box = thing(x1=number, y1=number, x2=number, y2=number)
    found = thing(**{"class": text}, category_id=whole, score=number, box=box)
    image = thing(name=text, height=whole, width=whole, detections=many(found))
    return {
        "Detections": thing(model=text, score_threshold=number, images=many(image)),
        "Model": thing(
            model=text,
            version=text,
            classes=many(text),
            image_size=many(whole),
            score_threshold=number,
            limits=thing(max_upload_mb=number, max_images=whole, max_megapixels=number),
        ),
        "Health": thing(status=text),
        "Problem": thing(status=whole, detail=text),
    }


def page(described: _Json) -> str:
    """Renders our OpenAPI document as an HTML page."""
    sections = [
        _section(path, method, operation)
        for path, methods in described["paths"].items()
        for method, operation in methods.items()
    ]
    schemas = "".join(
        f"<h3 id='{_text(name)}'>{_text(name)}</h3><pre>{_text(json.dumps(_example(schema), indent=2))}</pre>"
        for name, schema in described["components"]["schemas"].items()
    )
    title = _text(described["info"]["title"])
    return (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>{title}: documentation</title>"
        "<link rel='icon' href='icon.svg' type='image/svg+xml'><link rel='stylesheet' href='page.css'></head>"
        f"<body class='documentation'><header><h1>{title}</h1>"
        "<nav><a href='.'>Try it</a> <a href='openapi.json'>openapi.json</a></nav></header>"
        f"<main><p>{_text(described['info']['description'])}</p>{''.join(sections)}"
        f"<section><h2>Responses</h2>{schemas}</section></main></body></html>"
    )


def _section(path: str, method: str, operation: _Json) -> str:
    """Renders one operation."""
    parts = [
        f"<section><h2><code>{_text(method.upper())} {_text(path)}</code></h2>",
        f"<p>{_text(operation['summary'])} {_text(operation.get('description', ''))}</p>",
    ]
    if "parameters" in operation:
        rows = [(each["name"], each["description"] + _default(each)) for each in operation["parameters"]]
        parts.append(_table("Query", rows))
    if "requestBody" in operation:
        rows = [(kind, "") for kind in operation["requestBody"]["content"]]
        parts += [f"<p>{_text(operation['requestBody']['description'])}</p>", _table("Content-Type", rows)]
        parts.append(f"<pre>curl -H 'Content-Type: image/jpeg' --data-binary @image.jpg http://HOST{_text(path)}</pre>")
    parts.append(_table("Status", [(status, each["description"]) for status, each in operation["responses"].items()]))
    return "".join([*parts, "</section>"])


def _default(parameter: _Json) -> str:
    return f" Default: {parameter['schema']['default']}." if "default" in parameter["schema"] else ""


def _table(heading: str, rows: list[tuple[str, str]]) -> str:
    body = "".join(f"<tr><th scope='row'><code>{_text(a)}</code></th><td>{_text(b)}</td></tr>" for a, b in rows)
    return f"<table><thead><tr><th scope='col'>{_text(heading)}</th><th></th></tr></thead><tbody>{body}</tbody></table>"


def _example(schema: _Json) -> Any:
    """Makes an example value of a schema."""
    if schema["type"] == "object":
        return {name: _example(inner) for name, inner in schema["properties"].items()}
    if schema["type"] == "array":
        return [_example(schema["items"])]
    return {"string": "...", "number": 0.5, "integer": 1}[schema["type"]]


def _text(words: object) -> str:
    return html.escape(str(words), quote=True)
