package plugins

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
)

// adapterManifest is a file with "unit": "adapter": a class that gives plugins
// of a certain shape a typed method per task. It names no plugin: whoever has
// the methods and properties that it asks for gets it.
type adapterManifest struct {
	Task    string `json:"task_name"`
	Module  string `json:"module"`
	Class   string `json:"class"`
	Members struct {
		Methods    []surfaceMethod `json:"methods"`
		Properties []string        `json:"properties"`
	} `json:"protocol_members"`
}

// surface is what an installer recorded of a plugin's class.
type surface struct {
	Methods    []surfaceMethod `json:"methods"`
	Properties []string        `json:"properties"`
}

// surfaceMethod has its parameters by name; nil when nobody recorded them.
type surfaceMethod struct {
	Name   string   `json:"name"`
	Params []string `json:"params"`
}

// fits says why the plugin with surface s cannot carry the adapter; "" when it
// can. A method's own parameters may go on after those that the adapter passes.
func (a *adapterManifest) fits(s surface) string {
	for _, want := range a.Members.Methods {
		i := slices.IndexFunc(s.Methods, func(m surfaceMethod) bool { return m.Name == want.Name })
		if i < 0 {
			return fmt.Sprintf("has no method %s", want.Name)
		}
		have := s.Methods[i].Params
		if len(want.Params) > 0 && have != nil && (len(have) < len(want.Params) || !slices.Equal(have[:len(want.Params)], want.Params)) {
			return fmt.Sprintf("%s takes (%s), not (%s)", want.Name, strings.Join(have, ", "), strings.Join(want.Params, ", "))
		}
	}
	for _, want := range a.Members.Properties {
		if !slices.Contains(s.Properties, want) {
			return fmt.Sprintf("has no property %s", want)
		}
	}
	return ""
}

// adaptersFor are the classes that a worker of m binds: those that its own
// manifest names, then the installed ones that fit what its class was recorded
// to offer.
func adaptersFor(m Manifest, installed []Plugin) []string {
	out := slices.Clone(m.Adapters)
	s, ok := surfaceOf(m)
	if !ok {
		return out
	}
	for _, p := range installed {
		var a adapterManifest
		if p.Manifest == nil || json.Unmarshal(p.Manifest.Raw, &a) != nil || a.Module == "" || a.Class == "" {
			continue
		}
		if spec := a.Module + ":" + a.Class; a.fits(s) == "" && !slices.Contains(out, spec) {
			out = append(out, spec)
		}
	}
	return out
}

// surfaceOf reads the recorded surface; ok is false when there is none.
func surfaceOf(m Manifest) (surface, bool) {
	var raw struct {
		Code struct {
			Surface *surface `json:"structural_surface"`
		} `json:"code"`
	}
	if json.Unmarshal(m.Raw, &raw) != nil || raw.Code.Surface == nil {
		return surface{}, false
	}
	s := *raw.Code.Surface
	return s, len(s.Methods)+len(s.Properties) > 0
}

// readAdapters reads v3's own list.
func readAdapters(f *fields) []string {
	list := f.texts("adapters")
	for i, spec := range list {
		module, class, ok := strings.Cut(spec, ":")
		if !ok || module == "" || class == "" || strings.Contains(class, ":") || strings.ContainsAny(spec, " \t\r\n/\\") {
			f.fail(fmt.Sprintf("adapters[%d]", i), "is %q; it must be module:Class", spec)
		}
	}
	return list
}
