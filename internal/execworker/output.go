package execworker

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/cjmd/cjmd/internal/execspec"
)

const (
	maxMessage   = 8 << 10
	maxTail      = 24 << 10
	tailLines    = 20       // of standard error that an error carries
	maxLogLine   = 16 << 10 // of a log record; the rest of a longer line is left out
	progressPace = 50 * time.Millisecond
)

// Words at the beginning of a line of standard error that are for the worker.
const (
	sayProgress = "CJM_PROGRESS "
	sayError    = "CJM_ERROR "
)

// pipes are the ends of a program's standard streams.
type pipes struct {
	stdinR, stdoutW, stderrW *os.File // the program's
	stdinW, stdoutR, stderrR *os.File // ours
	source                   io.ReadCloser
	feeding                  chan struct{} // closed when standard input is fed; nil without one
}

// connect makes the pipes and gives cmd its ends.
func (j *job) connect(cmd *exec.Cmd, p plan) (_ *pipes, err error) {
	ps := &pipes{}
	defer func() {
		if err != nil {
			ps.closeTheirs()
			ps.close()
		}
	}()
	if p.stdin != nil {
		if ps.source, err = p.stdin(); err != nil {
			return nil, bad("cannot read what the program is to be fed with: %v", err)
		}
		if ps.stdinR, ps.stdinW, err = os.Pipe(); err != nil {
			return nil, &failure{category: "transient", retriable: true, message: err.Error()}
		}
		cmd.Stdin = ps.stdinR
	}
	if ps.stdoutR, ps.stdoutW, err = os.Pipe(); err == nil {
		ps.stderrR, ps.stderrW, err = os.Pipe()
	}
	if err != nil {
		return nil, &failure{category: "transient", retriable: true, message: err.Error()}
	}
	cmd.Stdout, cmd.Stderr = ps.stdoutW, ps.stderrW
	return ps, nil
}

func closeFiles(files ...*os.File) {
	for _, f := range files {
		if f != nil {
			_ = f.Close()
		}
	}
}

func (ps *pipes) closeTheirs() {
	closeFiles(ps.stdinR, ps.stdoutW, ps.stderrW)
	ps.stdinR, ps.stdoutW, ps.stderrW = nil, nil, nil
}

func (ps *pipes) close() {
	closeFiles(ps.stdinW, ps.stdoutR, ps.stderrR)
	if ps.feeding != nil {
		<-ps.feeding
	} else if ps.source != nil {
		_ = ps.source.Close()
	}
}

// feed writes standard input. A program that does not want it all closes it.
func (ps *pipes) feed(j *job) {
	defer close(ps.feeding)
	source := &notingReader{r: ps.source}
	_, _ = io.Copy(ps.stdinW, source)
	if source.err != nil { // before the end of file, which would look like all of it
		j.refuse(&failure{category: "fatal", message: "cannot read what the program is fed with: " + source.err.Error()})
	}
	_ = ps.stdinW.Close()
	_ = ps.source.Close()
}

// notingReader keeps the error of r, to tell it from one of the writer.
type notingReader struct {
	r   io.Reader
	err error
}

func (n *notingReader) Read(b []byte) (int, error) {
	count, err := n.r.Read(b)
	if err != nil && err != io.EOF {
		n.err = err
	}
	return count, err
}

// drain waits for the readers, and closes the pipes under them when something
// that is no longer ours holds the other end.
func (ps *pipes) drain(read *sync.WaitGroup) {
	done := make(chan struct{})
	go func() {
		read.Wait()
		close(done)
	}()
	t := time.NewTimer(drainTime)
	defer t.Stop()
	select {
	case <-done:
	case <-t.C:
		closeFiles(ps.stdoutR, ps.stderrR)
		<-done
	}
}

// output is what a program has said. Its readers are done before it is read.
type output struct {
	whole  []byte // standard output as a whole
	array  []byte // chunks that nobody asked to stream
	chunks int
	last   []string // lines of standard error
	said   saidError
	meter  meter
}

// begin starts the readers.
func (o *output) begin(j *job, p plan, ps *pipes) *sync.WaitGroup {
	o.meter = meter{j: j, rules: p.rules}
	if ps.source != nil {
		ps.feeding = make(chan struct{})
		go ps.feed(j)
	}
	read := &sync.WaitGroup{}
	read.Go(func() { o.readStderr(j, ps.stderrR) })
	read.Go(func() { o.readStdout(j, p, ps.stdoutR) })
	return read
}

func (o *output) tail() []string { return o.last }

// readStderr tells lines from the words that are for the worker.
func (o *output) readStderr(j *job, r io.Reader) {
	_ = lines{most: maxLogLine, cut: true, returns: true}.each(r, func(line []byte) error {
		text := strings.ToValidUTF8(string(line), "\ufffd")
		if rest, ok := strings.CutPrefix(text, sayProgress); ok && o.meter.say(rest) {
			return nil
		}
		if rest, ok := strings.CutPrefix(text, sayError); ok && o.said.read(rest) {
			return nil
		}
		if o.meter.match(false, text) || strings.TrimSpace(text) == "" {
			return nil
		}
		if o.last = append(o.last, text); len(o.last) > tailLines {
			o.last = o.last[1:]
		}
		j.log("stderr", text)
		return nil
	})
}

func (j *job) log(stream, text string) {
	j.w.notify("log", object{"job": j.params.Job, "level": "info", "message": text, "stream": stream, "time": float64(time.Now().UnixMicro()) / 1e6}, nil)
}

func (o *output) readStdout(j *job, p plan, r io.Reader) {
	kind := j.w.program.Spec.Stdout
	var err error
	switch kind {
	case execspec.StdoutJSON, execspec.StdoutText:
		o.whole, err = io.ReadAll(io.LimitReader(r, int64(j.w.most)+1))
		if err == nil && len(o.whole) > j.w.most {
			err = tooLong(j.w.most)
		}
	case execspec.StdoutLog:
		err = lines{most: maxLogLine, cut: true, returns: true}.each(r, func(line []byte) error {
			text := strings.ToValidUTF8(string(line), "\ufffd")
			if !o.meter.match(true, text) && strings.TrimSpace(text) != "" {
				j.log("stdout", text)
			}
			return nil
		})
	default:
		wanted := j.params.Stream || p.result == "" // else nobody reads them
		err = lines{most: j.w.most, cut: !wanted}.each(r, func(line []byte) error {
			if o.meter.match(true, string(line)) || !wanted {
				return nil
			}
			return o.chunk(j, line, kind == execspec.StdoutLines)
		})
	}
	var f *failure
	if errors.As(err, &f) {
		j.refuse(f)
	}
	_, _ = io.Copy(io.Discard, r) // a program must not block on what nobody wants
}

// chunk takes one line of a stream.
func (o *output) chunk(j *job, line []byte, asText bool) error {
	value, f := asResult(line, asText, fmt.Sprintf("line %d of standard output", o.chunks+1))
	if f != nil {
		return f
	}
	if len(value) == 0 {
		return nil // an empty line of NDJSON
	}
	if j.params.Stream {
		o.chunks++
		j.w.notify("chunk", object{"job": j.params.Job, "n": o.chunks}, value)
		return nil
	}
	if len(o.array)+len(value) > j.w.most {
		return tooLong(j.w.most)
	}
	if len(o.array) > 0 {
		o.array = append(o.array, ',')
	}
	o.array = append(o.array, value...)
	return nil
}

// result is what a program returned that left no file: its output, the list of
// its lines, or how many it streamed.
func (o *output) result(j *job) ([]byte, *failure) {
	switch j.w.program.Spec.Stdout {
	case execspec.StdoutJSON:
		return asResult(o.whole, false, "standard output")
	case execspec.StdoutText:
		return asResult(o.whole, true, "standard output")
	case execspec.StdoutLog:
		return nil, nil
	}
	if j.params.Stream {
		return fmt.Appendf(nil, `{"chunks":%d}`, o.chunks), nil
	}
	return append(append([]byte("["), o.array...), ']'), nil
}

// lines says how output is cut into lines.
type lines struct {
	most int  // bytes of a line
	cut  bool // a longer one is cut; otherwise it is an error
	// returns: a carriage return ends a line, too. Programs draw their progress
	// bars with it.
	returns bool
}

// each calls f with every line, without its end.
func (l lines) each(r io.Reader, f func([]byte) error) error {
	ends := "\n"
	if l.returns {
		ends = "\r\n"
	}
	buf := make([]byte, 64<<10)
	var line []byte
	for {
		n, err := r.Read(buf)
		for data := buf[:n]; len(data) > 0; {
			i := bytes.IndexAny(data, ends)
			part := data
			if i >= 0 {
				part = data[:i]
			}
			if room := l.most - len(line); len(part) > room {
				if !l.cut {
					return tooLong(l.most)
				}
				part = part[:room]
			}
			line = append(line, part...)
			if i < 0 {
				break
			}
			if err := f(line); err != nil {
				return err
			}
			line, data = line[:0], data[i+1:]
		}
		if err != nil {
			if len(line) > 0 {
				return f(line)
			}
			return nil // how the pipe ended says nothing that the exit does not
		}
	}
}

// saidError is the error that a program names itself:
// CJM_ERROR {"category": "user_input", "message": "no such voice"}.
type saidError struct {
	Category  string   `json:"category"`
	Message   string   `json:"message"`
	Type      string   `json:"type"`
	Retriable *bool    `json:"retriable"`
	Fields    []string `json:"fields"`
}

func (s *saidError) read(text string) bool {
	var e saidError
	if json.Unmarshal([]byte(text), &e) != nil {
		return false
	}
	*s = e
	return true
}

func (s *saidError) apply(f *failure) {
	if s.Category != "" {
		f.category, f.retriable = s.Category, retriable(s.Category)
	}
	if s.Message != "" {
		f.message = s.Message
	}
	if s.Type != "" {
		f.kind = s.Type
	}
	if s.Retriable != nil {
		f.retriable = *s.Retriable
	}
	f.fields = append(f.fields, s.Fields...)
}

// rule is a progress rule of one job.
type rule struct {
	execspec.Rule
	total float64
}

// meter turns lines into progress. Both readers use it.
type meter struct {
	j     *job
	rules []rule

	mu      sync.Mutex
	total   float64     // guarded by mu, as is the rest; found in the output
	message string      // the newest
	told    time.Time   // when progress was told last
	waiting object      // what was not told yet; nil when nothing
	turn    *time.Timer // until it may be; nil when none runs
}

// say reads "fraction message"; the fraction may be a quotient (3/8), which a shell
// script need not compute.
func (m *meter) say(text string) bool {
	number, message, _ := strings.Cut(strings.TrimSpace(text), " ")
	above, below, quotient := strings.Cut(number, "/")
	fraction, err := strconv.ParseFloat(above, 64)
	if err == nil && quotient {
		var n float64
		if n, err = strconv.ParseFloat(below, 64); err == nil && n > 0 {
			fraction /= n
		} else if err == nil {
			fraction = -1
		}
	}
	if err != nil {
		return false
	}
	m.tell(min(fraction, 1), strings.TrimSpace(message))
	return true
}

// match tries the rules on a line and reports whether one was about it.
func (m *meter) match(stdout bool, line string) bool {
	hit := false
	for i := range m.rules {
		r := &m.rules[i]
		if r.Stdout != stdout {
			continue
		}
		if groups := r.Pattern.FindStringSubmatch(line); groups != nil {
			hit = true
			m.take(r, groups)
		}
	}
	return hit
}

func (m *meter) take(r *rule, groups []string) {
	found := map[string]string{}
	for i, name := range r.Pattern.SubexpNames() {
		if name != "" && groups[i] != "" {
			found[name] = groups[i]
		}
	}
	m.mu.Lock()
	if t, ok := amount(found["total"]); ok {
		m.total = t
	}
	total := m.total
	if r.total > 0 {
		total = r.total
	}
	if s, ok := found["message"]; ok {
		m.message = strings.TrimSpace(s)
	}
	message := m.message
	m.mu.Unlock()
	fraction, known := -1.0, found["message"] != ""
	if f, ok := amount(found["fraction"]); ok {
		fraction, known = f, true
	} else if p, ok := amount(found["percent"]); ok {
		fraction, known = p/100, true
	} else if d, ok := amount(found["done"]); ok {
		known = true
		if total > 0 {
			fraction = d / total
		}
	}
	if known {
		m.tell(min(fraction, 1), message)
	}
}

// tell reports progress, at most twenty times a second: what comes faster waits
// for its turn, and the newest is told.
func (m *meter) tell(fraction float64, message string) {
	if !(fraction >= 0) { // also what is no number
		fraction = -1
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.message, m.waiting = message, object{"job": m.j.params.Job, "fraction": fraction, "message": cut(message, maxMessage)}
	if wait := progressPace - time.Since(m.told); wait <= 0 {
		m.sendLocked()
	} else if m.turn == nil {
		m.turn = time.AfterFunc(wait, m.flush)
	}
}

// flush tells what waits. After the program has ended it is called once more,
// before the answer.
func (m *meter) flush() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.turn != nil {
		m.turn.Stop()
		m.turn = nil
	}
	m.sendLocked()
}

func (m *meter) sendLocked() {
	if m.waiting == nil {
		return
	}
	m.j.w.notify("progress", m.waiting, nil)
	m.told, m.waiting = time.Now(), nil
}

// amount reads a number, or a time of day as media programs print it (01:02:03.5).
func amount(s string) (float64, bool) {
	if s == "" {
		return 0, false
	}
	var total float64
	for _, p := range strings.Split(s, ":") {
		n, err := strconv.ParseFloat(p, 64)
		if err != nil {
			return 0, false
		}
		total = total*60 + n
	}
	return total, true
}

// cut keeps both ends of a text, which say most.
func cut(s string, most int) string {
	if len(s) <= most {
		return s
	}
	half := most/2 - 16
	return strings.ToValidUTF8(s[:half], "") + "\n… cut …\n" + strings.ToValidUTF8(s[len(s)-half:], "")
}
