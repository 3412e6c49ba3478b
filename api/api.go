// Package api carries the description of the HTTP API, the only hand-written
// source of its types, server interface and Go client.
package api

import _ "embed"

// Spec is openapi.yaml as it is served.
//
//go:embed openapi.yaml
var Spec []byte

// ManifestSchema is manifest.schema.json as it is served.
//
//go:embed manifest.schema.json
var ManifestSchema []byte
