"""The service's description of itself: as OpenAPI 3.1, and as a page made from that, without a script.

Tools that show OpenAPI load theirs from other people's servers; this page is text.
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
        limits: of the service.
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
    """Writes the OpenAPI document; arguments as of `model_facts`."""
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
            "/v1/model": {"get": _plain("What the service was started with.", "model", "Model")},
            "/healthz": {"get": _plain("Says that the service works.", "health", "Health")},
            "/metrics": {
                "get": {
                    "operationId": "metrics",
                    "summary": "Counters and times, for Prometheus.",
                    "responses": {"200": {"description": "Text format.", "content": {"text/plain": {}}}},
                }
            },
        },
        "components": {"schemas": _schemas()},
    }


def _detect(facts: Any, limits: Limits) -> _Json:
    binary = {"type": "string", "format": "binary"}
    image, form = {"schema": binary}, {"schema": {"type": "object", "additionalProperties": binary}}
    refusals = {
        "400": "The body is empty, or a form that is damaged or names files by paths.",
        "408": f"The body was not there within {limits.upload_seconds:g} s.",
        "413": f"More than {limits.max_upload_mb:g} MB, {limits.max_images} images, "
        f"or {limits.max_megapixels:g} million pixels in one of them.",
        "415": "No image of a format that is read: JPEG, PNG, BMP, WebP, TIFF, GIF, AVIF, HEIC.",
        "422": "A damaged image, or a query that cannot be used.",
        "503": "Too much at once; Retry-After says when to come again.",
    }
    return {
        "operationId": "detect",
        "summary": "Detects objects in an image, or in several.",
        "description": "Boxes are in px of the image, upright as its EXIF orientation says. Of an animation, or of "
        "several pages, the first image is looked at. "
        "If one image of several cannot be used, none is answered.",
        "parameters": [
            {
                "name": "score_threshold",
                "in": "query",
                "description": "Detections below it are left out.",
                "schema": {"type": "number", "minimum": 0, "maximum": 1, "default": facts.score_threshold},
            },
            {
                "name": "classes",
                "in": "query",
                "description": "Names of classes, with commas between or given several times; the others are left out.",
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
            "description": "An image; or a form of images, under any names; or JSON with images in base64. A form "
            "and JSON may have what the query may have, as fields.",
            "content": {
                "image/*": image,
                "application/octet-stream": image,
                "multipart/form-data": form,
                "application/json": {"schema": _JSON_BODY},
            },
        },
        "responses": {
            "200": {"description": "What was found, best first.", "content": _json_of("Detections")},
            **{
                status: {"description": text, "content": {"application/problem+json": _refers_to("Problem")}}
                for status, text in refusals.items()
            },
        },
    }


_FURTHER: dict[str, tuple[str, _Json]] = {
    "class_thresholds": (
        "Classes that have a threshold of their own: person:0.5,dog:0.2.",
        {"type": "string"},
    ),
    "class_agnostic": (
        "Of boxes that share half of their union, whatever their classes, only the best stays.",
        {"type": "boolean"},
    ),
    "max_detections": ("Most detections of an image, the best ones.", {"type": "integer", "minimum": 1}),
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
    """Writes an OpenAPI document of ours as a page for people."""
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
        f"<section><h2>Answers</h2>{schemas}</section></main></body></html>"
    )


def _section(path: str, method: str, operation: _Json) -> str:
    """Writes one operation."""
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
    """Shows the form of an answer."""
    if schema["type"] == "object":
        return {name: _example(inner) for name, inner in schema["properties"].items()}
    if schema["type"] == "array":
        return [_example(schema["items"])]
    return {"string": "...", "number": 0.5, "integer": 1}[schema["type"]]


def _text(words: object) -> str:
    return html.escape(str(words), quote=True)
