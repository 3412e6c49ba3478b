package sched

import (
	"encoding/json"
	"strings"

	"github.com/cjmd/cjmd/internal/jobs"
)

// controlLabel begins the labels that plugins of the Python system know as the
// control flags of a call: control.force=true passes them by its caches.
const controlLabel = "control."

// maxFlag bounds a flag with its name: all of them, escaped, have to fit into
// the header of a call. What is longer is a label that happens to begin so.
const maxFlag = 100

// envelope is what a plugin may know about who wants the job: it travels beside
// the arguments and changes nothing by itself.
func envelope(job *jobs.Job) json.RawMessage {
	said := struct {
		Job     jobs.ID        `json:"job_id"`
		Actor   string         `json:"actor,omitempty"`
		Control map[string]any `json:"control,omitempty"`
	}{Job: job.ID, Actor: job.Submitter}
	for key, value := range job.Spec.Labels {
		name, ok := strings.CutPrefix(key, controlLabel)
		if !ok || name == "" || len(name)+len(value) > maxFlag {
			continue
		}
		if said.Control == nil {
			said.Control = map[string]any{}
		}
		switch value {
		case "true", "false":
			said.Control[name] = value == "true"
		default:
			said.Control[name] = value
		}
	}
	raw, err := json.Marshal(said)
	if err != nil { // strings and maps of strings always marshal
		return nil
	}
	return raw
}
