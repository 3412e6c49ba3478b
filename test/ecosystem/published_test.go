//go:build ecosystem

package ecosystem

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cjmd/cjmd/internal/api/wire"
)

// published is one plugin as its authors released it, and what it must answer.
// A nil check is something that the plugin does not offer.
type published struct {
	env    string // of locks/, that is the release of the base library
	name   string // of the package and of its manifest
	unary  func(c caller)
	stream func(c caller)
	cancel func(c caller)
	config func(c caller)
	// monitor: it can be registered as the system monitor.
	monitor bool
}

// all is everything that is run. Within an environment the order is that of the table.
var all = []published{
	{env: "plugin-system-0.0.23", name: "cjm-system-monitor-nvidia", unary: monitorByCommand, stream: oneStatus, monitor: true},
	{env: "plugin-system-0.0.28", name: "cjm-graph-plugin-sqlite", unary: graphByAction, stream: oneSchema, config: anotherGraph},
	{env: "plugin-system-0.0.28", name: "cjm-system-monitor-nvidia", unary: monitorByCommand, stream: oneStatus, monitor: true},
	{env: "plugin-system-0.0.30", name: "cjm-graph-plugin-sqlite", unary: graphByAction, stream: oneSchema, config: anotherGraph},
	{env: "plugin-system-0.0.30", name: "cjm-media-plugin-ffmpeg", unary: mediaByAction, stream: oneInfo, cancel: cancelConversion, config: flacByDefault},
	{env: "plugin-system-0.0.30", name: "cjm-text-plugin-nltk", unary: sentencesByAction(untrained), stream: oneSplit(untrained), config: germanByAction(untrainedGerman)},
	{env: "plugin-system-0.0.46", name: "cjm-graph-plugin-sqlite", unary: graphByAction, stream: oneSchema, config: anotherGraph},
	{env: "plugin-system-0.0.46", name: "cjm-media-plugin-ffmpeg", unary: mediaByAction, stream: oneInfo, cancel: cancelConversion, config: flacByDefault},
	{env: "plugin-system-0.0.46", name: "cjm-system-monitor-nvidia", unary: monitorByCommand, stream: oneStatus, monitor: true},
	{env: "plugin-system-0.0.46", name: "cjm-text-plugin-nltk", unary: sentencesByAction(sentences), stream: oneSplit(sentences), config: germanByAction(germanParts)},
	{env: "substrate-0.0.74", name: "cjm-capability-graph-sqlite", unary: graphByTask, config: anotherGraphByTask},
	{env: "substrate-0.0.74", name: "cjm-capability-pysbd", unary: sentencesByTask, cancel: cancelSentences, config: germanSentences},
	{env: "substrate-0.0.74", name: "cjm-capability-ffmpeg", unary: mediaByTask, cancel: cancelConversionTask},
	{env: "substrate-0.0.74", name: "cjm-capability-monitor-nvidia", monitor: true},
}

// --- Monitors -------------------------------------------------------------------

func monitorByCommand(c caller) {
	status := c.object(call{args: []any{"get_system_status"}})
	plausible(c.t, status)
	refuses(c, call{args: []any{"make_coffee"}})
}

func plausible(t testing.TB, status map[string]any) {
	t.Helper()
	total, _ := status["memory_total_mb"].(float64)
	free, _ := status["memory_available_mb"].(float64)
	if total < 256 || free <= 0 || free > total {
		t.Errorf("memory of the machine: %v MB, %v of it available; all: %v", total, free, status)
	}
}

func oneStatus(c caller) {
	chunks := c.chunks(call{args: []any{"get_system_status"}})
	equal(c.t, len(chunks), 1)
	plausible(c.t, chunks[0].(map[string]any))
}

// --- Graphs on SQLite -----------------------------------------------------------

var (
	nodes = []any{
		map[string]any{"id": "n1", "label": "Person", "properties": map[string]any{"name": "Ada"}},
		map[string]any{"id": "n2", "label": "Person", "properties": map[string]any{"name": "Grace"}},
		map[string]any{"id": "n3", "label": "Topic", "properties": map[string]any{"name": "compilers"}},
	}
	edges = []any{
		map[string]any{"id": "e1", "source_id": "n1", "target_id": "n2", "relation_type": "KNOWS"},
		map[string]any{"id": "e2", "source_id": "n2", "target_id": "n3", "relation_type": "WROTE_ABOUT"},
	}
)

func action(name string, more map[string]any) call {
	kwargs := map[string]any{"action": name}
	for key, value := range more {
		kwargs[key] = value
	}
	return call{kwargs: kwargs}
}

func graphByAction(c caller) {
	has(c.t, c.object(action("add_nodes", map[string]any{"nodes": nodes})), map[string]any{"count": 3.0, "created_ids": []any{"n1", "n2", "n3"}})
	has(c.t, c.object(action("add_edges", map[string]any{"edges": edges})), map[string]any{"count": 2.0})
	found := c.object(action("find_nodes_by_label", map[string]any{"label": "Person"}))
	equal(c.t, ids(found["nodes"]), []string{"n1", "n2"})
	around := c.object(action("get_context", map[string]any{"node_id": "n1", "depth": 2}))
	equal(c.t, ids(around["nodes"]), []string{"n1", "n2", "n3"})
	equal(c.t, ids(around["edges"]), []string{"e1", "e2"})
	has(c.t, c.object(action("delete_nodes", map[string]any{"node_ids": []string{"n3"}})), map[string]any{"deleted_count": 1.0})
	schema := c.object(action("get_schema", nil))
	equal(c.t, sorted(schema["node_labels"]), []string{"Person"})
	equal(c.t, sorted(schema["edge_types"]), []string{"KNOWS"})
	refuses(c, action("no_such_action", nil))
}

func oneSchema(c caller) {
	chunks := c.chunks(action("get_schema", nil))
	equal(c.t, len(chunks), 1)
	equal(c.t, sorted(chunks[0].(map[string]any)["node_labels"]), []string{"Person"})
}

// anotherGraph changes where the graph is kept, and back.
func anotherGraph(c caller) {
	people := func() int {
		return len(ids(c.object(action("find_nodes_by_label", map[string]any{"label": "Person"}))["nodes"]))
	}
	c.configure(map[string]any{"db_path": filepath.Join(c.t.TempDir(), "other.db")})
	equal(c.t, people(), 0)
	has(c.t, c.object(action("add_nodes", map[string]any{"nodes": nodes[:1]})), map[string]any{"count": 1.0})
	equal(c.t, people(), 1)
	c.configure(map[string]any{})
	equal(c.t, people(), 2)
}

func graph(method string, kwargs map[string]any) call {
	return call{task: "graph-storage", method: method, kwargs: kwargs}
}

func graphByTask(c caller) {
	equal(c.t, c.result(graph("add_nodes", map[string]any{"nodes": nodes})), []any{"n1", "n2", "n3"})
	equal(c.t, c.result(graph("add_edges", map[string]any{"edges": edges})), []any{"e1", "e2"})
	equal(c.t, ids(c.result(graph("find_nodes_by_label", map[string]any{"label": "Person"}))), []string{"n1", "n2"})
	around := c.object(graph("get_context", map[string]any{"node_id": "n1", "depth": 2}))
	equal(c.t, ids(around["nodes"]), []string{"n1", "n2", "n3"})
	equal(c.t, c.result(graph("delete_nodes", map[string]any{"node_ids": []string{"n3"}})), 1.0)
	has(c.t, c.object(graph("integrity_check", nil)), map[string]any{"ok": true, "backend": "sqlite"})
	c.fails(graph("no_such_method", nil), wire.JobErrorCategoryUserInput)
	c.fails(call{task: "no-such-task", method: "add_nodes"}, wire.JobErrorCategoryUserInput)
}

func anotherGraphByTask(c caller) {
	people := func() int {
		return len(ids(c.result(graph("find_nodes_by_label", map[string]any{"label": "Person"}))))
	}
	c.configure(map[string]any{"db_path": filepath.Join(c.t.TempDir(), "other.db")})
	equal(c.t, people(), 0)
	equal(c.t, c.result(graph("add_nodes", map[string]any{"nodes": nodes[:1]})), []any{"n1"})
	equal(c.t, people(), 1)
	c.configure(map[string]any{})
	equal(c.t, people(), 2)
}

// refuses runs a call that must fail, however the plugin calls its error.
func refuses(c caller, k call) {
	c.t.Helper()
	if job := c.s.Wait(c.submit(k, false).Id); job.Status != wire.JobStatusFailed {
		c.t.Errorf("the job is %s, want failed", job.Status)
	}
}

// --- Media ----------------------------------------------------------------------

const recording = "../../examples/plugins/ffmpeg/samples/two-speakers.ogg"

func media(t testing.TB) string {
	t.Helper()
	path, err := filepath.Abs(recording)
	if err != nil {
		t.Fatal(err)
	}
	return path
}

func mediaByAction(c caller) {
	info := c.object(action("get_info", map[string]any{"file_path": media(c.t)}))
	isRecording(c.t, info)
	made := c.object(action("convert", map[string]any{"input_path": media(c.t), "output_format": "wav", "sample_rate": 16000, "channels": 1}))
	isSpeechWAV(c.t, made["output_path"])
	part := c.object(action("extract_segment", map[string]any{"input_path": made["output_path"], "start": 1.0, "end": 3.5}))
	cut := c.object(action("get_info", map[string]any{"file_path": part["output_path"]}))
	if d, _ := cut["duration"].(float64); d < 2.4 || d > 2.6 {
		c.t.Errorf("the cut is %v s long, want 2.5", d)
	}
	refuses(c, action("get_info", map[string]any{"file_path": "/no/such/file"}))
}

func isRecording(t testing.TB, info map[string]any) {
	t.Helper()
	has(t, info, map[string]any{"duration": 13.336259, "format": "ogg"})
	streams, _ := info["audio_streams"].([]any)
	if len(streams) != 1 {
		t.Fatalf("audio streams: %v", info["audio_streams"])
	}
	has(t, streams[0], map[string]any{"codec": "vorbis", "sample_rate": 44100.0, "channels": 2.0})
}

// isSpeechWAV checks a file's own words: 16 kHz, one channel.
func isSpeechWAV(t testing.TB, path any) {
	t.Helper()
	name, _ := path.(string)
	head := make([]byte, 36)
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.Read(head); err != nil {
		t.Fatal(err)
	}
	if string(head[:4]) != "RIFF" || binary.LittleEndian.Uint16(head[22:]) != 1 || binary.LittleEndian.Uint32(head[24:]) != 16000 {
		t.Errorf("%s is no WAV file of 16 kHz with one channel: % x", name, head)
	}
}

func oneInfo(c caller) {
	chunks := c.chunks(action("get_info", map[string]any{"file_path": media(c.t)}))
	equal(c.t, len(chunks), 1)
	isRecording(c.t, chunks[0].(map[string]any))
}

func cancelConversion(c caller) {
	c.cancelled(action("convert", map[string]any{"input_path": longRecording(c.t), "output_format": "mp3"}))
	isRecording(c.t, c.object(action("get_info", map[string]any{"file_path": media(c.t)})))
}

func flacByDefault(c caller) {
	c.configure(map[string]any{"default_audio_format": "flac", "default_audio_bitrate": "128k"})
	now := c.s.Text("/v1/plugins/" + c.plugin + "/config")
	if !strings.Contains(now, `"default_audio_format":"flac"`) {
		c.t.Errorf("the configuration is %s", now)
	}
	isRecording(c.t, c.object(action("get_info", map[string]any{"file_path": media(c.t)})))
}

func mediaTask(method string, kwargs map[string]any) call {
	return call{task: "media_processing", method: method, kwargs: kwargs}
}

func mediaByTask(c caller) {
	isRecording(c.t, c.object(mediaTask("get_info", map[string]any{"file_path": media(c.t)})))
	made := c.object(mediaTask("convert", map[string]any{"input_path": media(c.t), "output_format": "wav", "sample_rate": 16000, "channels": 1}))
	isSpeechWAV(c.t, made["output_path"])
	c.fails(mediaTask("get_info", map[string]any{"file_path": "/no/such/file"}), wire.JobErrorCategoryUserInput)
}

func cancelConversionTask(c caller) {
	c.cancelled(mediaTask("convert", map[string]any{"input_path": longRecording(c.t), "output_format": "mp3"}))
	isRecording(c.t, c.object(mediaTask("get_info", map[string]any{"file_path": media(c.t)})))
}

// longRecording is twenty hours of silence that take no room on the disk.
func longRecording(t testing.TB) string {
	t.Helper()
	const rate, size = 8000, 20 * 3600 * 8000 * 2
	head := []byte("RIFF\x00\x00\x00\x00WAVEfmt \x10\x00\x00\x00\x01\x00\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\x10\x00data\x00\x00\x00\x00")
	binary.LittleEndian.PutUint32(head[4:], size+36)
	binary.LittleEndian.PutUint32(head[24:], rate)
	binary.LittleEndian.PutUint32(head[28:], rate*2)
	binary.LittleEndian.PutUint32(head[40:], size)
	path := filepath.Join(t.TempDir(), "silence.wav")
	if err := os.WriteFile(path, head, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, size+44); err != nil {
		t.Fatal(err)
	}
	return path
}

// --- Sentences ------------------------------------------------------------------

const german = "Das kostet z.B. 5 Euro. Am Abend kommt Dr. Braun."

var germanParts = []string{"Das kostet z.B. 5 Euro.", "Am Abend kommt Dr. Braun."}

const english = "Dr. Smith paid $3.50 for bread. Was it fresh? He met J. R. Brown at 5 p.m. on Main St. near the bridge."

// sentences are what english falls into.
var sentences = []string{"Dr. Smith paid $3.50 for bread.", "Was it fresh?", "He met J. R. Brown at 5 p.m. on Main St. near the bridge."}

// What the release of 0.0.30 makes of it, whose splitter knows no abbreviations.
var (
	untrained       = []string{"Dr.", "Smith paid $3.50 for bread.", "Was it fresh?", "He met J. R. Brown at 5 p.m.", "on Main St.", "near the bridge."}
	untrainedGerman = []string{"Das kostet z.B.", "5 Euro.", "Am Abend kommt Dr.", "Braun."}
)

func split(text string) call { return action("split_sentences", map[string]any{"text": text}) }

func sentencesByAction(want []string) func(c caller) {
	return func(c caller) {
		equal(c.t, texts(c.object(split(english))), want)
		refuses(c, action("translate", nil))
	}
}

// texts are the spans' texts.
func texts(result any) []string {
	var out []string
	o, _ := result.(map[string]any)
	list, _ := o["spans"].([]any)
	for _, span := range list {
		s, _ := span.(map[string]any)
		text, _ := s["text"].(string)
		out = append(out, text)
	}
	return out
}

func oneSplit(want []string) func(c caller) {
	return func(c caller) {
		chunks := c.chunks(split(english))
		equal(c.t, len(chunks), 1)
		equal(c.t, texts(chunks[0]), want)
	}
}

func germanByAction(want []string) func(c caller) {
	return func(c caller) {
		c.configure(map[string]any{"language": "german"})
		equal(c.t, texts(c.object(split(german))), want)
	}
}

func segment(text string) call {
	return call{task: "sentence_segmentation", method: "segment_text", kwargs: map[string]any{"text": text}}
}

func sentencesByTask(c caller) {
	equal(c.t, spans(c, english), sentences)
	c.fails(call{task: "sentence_segmentation", method: "segment_text", kwargs: map[string]any{"text": 5}}, wire.JobErrorCategoryUserInput)
}

// spans are the sentences that were found, cut out of the text.
func spans(c caller, text string) []string {
	c.t.Helper()
	var out []string
	runes := []rune(text)
	for _, s := range c.object(segment(text))["spans"].([]any) {
		span := unwrapped(s).(map[string]any)
		out = append(out, string(runes[int(span["start_char"].(float64)):int(span["end_char"].(float64))]))
	}
	return out
}

func cancelSentences(c caller) {
	c.cancelled(segment(strings.Repeat(english+" ", 8000)))
	equal(c.t, len(spans(c, english)), 3)
}

func germanSentences(c caller) {
	c.configure(map[string]any{"language": "de"})
	equal(c.t, spans(c, german), germanParts)
}

// --- Little helpers -------------------------------------------------------------

// ids are the ids of nodes or edges, in order.
func ids(list any) []string {
	var out []string
	items, _ := list.([]any)
	for _, item := range items {
		o, _ := unwrapped(item).(map[string]any)
		id, _ := o["id"].(string)
		out = append(out, id)
	}
	slices.Sort(out)
	return out
}

func sorted(list any) []string {
	var out []string
	items, _ := list.([]any)
	for _, item := range items {
		s, _ := item.(string)
		out = append(out, s)
	}
	slices.Sort(out)
	return out
}
