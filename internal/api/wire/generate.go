// Package wire holds what crosses the HTTP API: the types, the server interface
// and its strict form, all generated from api/openapi.yaml. Nothing in it is
// written by hand; change the description and run go generate.
package wire

//go:generate go tool -modfile=../../../tools/go.mod oapi-codegen -config oapi-codegen.yaml ../../../api/openapi.yaml
