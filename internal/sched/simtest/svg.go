package simtest

import (
	"fmt"
	"html"
	"io"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/cjmd/cjmd/internal/jobs"
	"github.com/cjmd/cjmd/internal/resource"
)

// Measures of the drawing, in pixels.
const (
	svgWidth   = 1240
	svgLeft    = 150
	svgRight   = 40
	plotWidth  = svgWidth - svgLeft - svgRight
	laneHeight = 18
	laneGap    = 4
	memHeight  = 110
	waitHeight = 130
	blockGap   = 34
)

// hues are one colour a plugin, readable on white and on black, and apart from
// each other for people who see few colours (after Okabe and Ito).
var hues = [...]string{"#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#8a7fd1", "#b8a100", "#5f8a8b", "#a0522d"}

// svgStyle names what the shapes mean; dark is chosen by whoever shows the page.
// Colours stand in the rules themselves: not every viewer knows variables.
const svgStyle = `
text{font:12px system-ui,"DejaVu Sans",sans-serif;fill:#1f2328}
.title{font-size:20px;font-weight:600}.head{font-size:14px;font-weight:600}.small{font-size:11px}.muted{fill:#59636e}.num{font-variant-numeric:tabular-nums}
.bg{fill:#ffffff}.grid{stroke:#d8dee4;stroke-width:1}.axis{stroke:#818b98;stroke-width:1}.total{stroke:#1f2328;stroke-width:1.2;stroke-dasharray:5 3}
.lane{fill:#f3f5f7}.system{fill:#c3cad2}.ext{fill:#8b949e}.leak{fill:#9e2a2b}.bad{fill:#d1242f}.badline{stroke:#d1242f;stroke-width:1.5}
.res{opacity:.28}.load{opacity:.55}.stop{opacity:.7;fill:#8b949e}.back{fill:none;stroke:#8b949e;stroke-dasharray:2 2}.down{fill:#d1242f;opacity:.18}
@media (prefers-color-scheme:dark){text{fill:#e6edf3}.muted{fill:#9198a1}.bg{fill:#0d1117}.grid{stroke:#2a313c}.axis{stroke:#656c76}.total{stroke:#e6edf3}
.lane{fill:#161b22}.system{fill:#444c56}.ext{fill:#768390}.leak{fill:#c93c3e}.res{opacity:.38}.load{opacity:.65}.bad{fill:#ff6b6b}.badline{stroke:#ff6b6b}}
`

// drawing is one SVG under way.
type drawing struct {
	r    *Result
	c    *Comparison
	b    strings.Builder
	y    float64 // where the next block begins
	end  time.Duration
	hue  map[string]string
	lane map[string]float64 // y of an instance's lane in the block at hand
}

// WriteSVG draws a result: per device who was loaded, loading and running, the
// memory by owner, and how long the jobs waited. c adds the comparison; nil: none.
func WriteSVG(w io.Writer, r *Result, c *Comparison) error {
	g := &drawing{r: r, c: c, end: max(r.End, time.Second), hue: make(map[string]string)}
	for i, name := range r.Trace.Names() {
		g.hue[name] = hues[i%len(hues)]
	}
	g.header()
	for _, d := range r.Trace.Machine.Devices {
		title := d.ID
		if d.Name != "" {
			title = d.Name + "  " + d.ID
		}
		g.device(resource.DeviceID(d.ID), title, resource.FromMB(d.TotalMB))
	}
	g.host()
	g.waits()
	g.legend()
	_, err := fmt.Fprintf(w, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %.0f" width="%d" height="%.0f" role="img"><title>%s, policy %s</title><style>%s</style><rect class="bg" width="100%%" height="100%%"/>%s</svg>`+"\n",
		svgWidth, g.y, svgWidth, g.y, html.EscapeString(r.Trace.Name), html.EscapeString(r.Policy), svgStyle, g.b.String())
	if err != nil {
		return fmt.Errorf("cannot write SVG: %w", err)
	}
	return nil
}

func (g *drawing) printf(format string, args ...any) { fmt.Fprintf(&g.b, format, args...) }

func (g *drawing) text(x, y float64, class, anchor, s string) {
	if anchor != "" {
		anchor = ` text-anchor="` + anchor + `"`
	}
	if class != "" {
		class = ` class="` + class + `"`
	}
	g.printf(`<text x="%.1f" y="%.1f"%s%s>%s</text>`, x, y, class, anchor, html.EscapeString(s))
}

// x is where a time lies.
func (g *drawing) x(t time.Duration) float64 {
	return svgLeft + plotWidth*float64(min(t, g.end))/float64(g.end)
}

func (g *drawing) header() {
	g.y = 34
	g.text(24, g.y, "title", "", g.r.Trace.Name+" · policy "+g.r.Policy)
	for _, line := range wrap(g.r.Trace.About, 150) {
		g.y += 18
		g.text(24, g.y, "muted", "", line)
	}
	g.y += 26
	if g.c == nil {
		return
	}
	cols := []float64{24, 250, 350, 450, 520, 590, 660, 730, 800}
	row := func(class string, cells ...string) {
		for i, s := range cells {
			anchor := "end"
			if i == 0 {
				anchor = ""
			}
			g.text(cols[i], g.y, class, anchor, s)
		}
		g.y += 17
	}
	row("small muted", "policy", "makespan", "of lower bound", "done", "failed", "OOMs", "loads", "stops")
	for _, s := range g.c.Results {
		row("num", s.Policy, short(s.Makespan), fmt.Sprintf("%.2f", s.OfBound), fmt.Sprint(s.Completed), fmt.Sprint(s.Failed+s.Unended),
			fmt.Sprint(s.OOMs), fmt.Sprint(s.Loads), fmt.Sprint(s.Stops))
	}
	g.text(24, g.y, "small muted", "", fmt.Sprintf("No schedule ends before %s (%s).", short(g.c.Bound.Makespan.Seconds()), g.c.Bound.Why))
	g.y += 10
}

// wrap breaks a text into lines of about n letters.
func wrap(s string, n int) []string {
	var out []string
	line := ""
	for _, w := range strings.Fields(s) {
		if line != "" && len(line)+1+len(w) > n {
			out = append(out, line)
			line = ""
		}
		if line != "" {
			line += " "
		}
		line += w
	}
	if line != "" {
		out = append(out, line)
	}
	return out
}

// device draws the lanes of a device and its memory.
func (g *drawing) device(id resource.DeviceID, title string, total resource.Bytes) {
	g.y += blockGap
	g.text(24, g.y-8, "head", "", title)
	on := func(s *Span) bool { return slices.Contains(s.Devices, id) }
	g.lanes(on)
	for _, o := range g.r.OOMs {
		if o.Device != id {
			continue
		}
		x, y := g.x(o.At), g.lane[o.Owner]
		g.printf(`<path class="badline" d="M%.1f %.1fl6 6m0 -6l-6 6"/>`, x-3, y+laneHeight/2-3)
	}
	top := g.y
	g.memory(id, total)
	g.axis(top, false)
	g.y += 4
}

// host draws the lanes of jobs that need no device.
func (g *drawing) host() {
	on := func(s *Span) bool { return len(s.Devices) == 0 }
	if !slices.ContainsFunc(g.r.Spans, func(s Span) bool { return on(&s) }) {
		return
	}
	g.y += blockGap
	g.text(24, g.y-8, "head", "", "Host")
	g.lanes(on)
}

// lanes draws one lane for each instance that was there: its worker's life
// behind, its runs before, one row a slot.
func (g *drawing) lanes(on func(*Span) bool) {
	var names []string
	for i := range g.r.Spans {
		s := &g.r.Spans[i]
		if on(s) && !slices.Contains(names, s.Instance) {
			names = append(names, s.Instance)
		}
	}
	slices.Sort(names)
	top := g.y
	g.lane = make(map[string]float64)
	for _, name := range names {
		g.lane[name] = g.y
		g.printf(`<rect class="lane" x="%d" y="%.1f" width="%d" height="%d"/>`, svgLeft, g.y, plotWidth, laneHeight)
		g.text(svgLeft-10, g.y+13, "", "end", name)
		g.laneSpans(name, g.y, on)
		g.y += laneHeight + laneGap
	}
	g.axis(top, len(names) > 0)
}

func (g *drawing) laneSpans(name string, y float64, on func(*Span) bool) {
	slots := max(g.r.Trace.Plugins[name].Concurrency, 1)
	free := make([]time.Duration, slots) // until when each row is taken
	row := (laneHeight - 4) / float64(slots)
	lastX := make([]float64, slots)
	for i := range g.r.Spans {
		s := &g.r.Spans[i]
		if s.Instance != name || !on(s) {
			continue
		}
		x, w := g.x(s.From), max(g.x(s.To)-g.x(s.From), 0.6)
		switch s.Kind {
		case KindResident:
			g.rect("res", name, x, y, w, laneHeight)
		case KindLoad:
			g.rect("load", name, x, y+laneHeight/2-2, w, 4)
		case KindStopping:
			g.rect("stop", "", x, y, w, laneHeight)
		case KindReturning:
			if w > 2 {
				g.rect("back", "", x, y+0.5, w, laneHeight-1)
			}
		case KindRun, KindOOM:
			k := 0
			for i := range free {
				if free[i] <= s.From {
					k = i
					break
				}
			}
			free[k] = s.To
			if x+w < lastX[k]+0.4 { // hidden behind the one before
				continue
			}
			if w > 1.6 { // a line between two runs that follow each other
				w -= 0.6
			}
			lastX[k] = x + w
			class := ""
			if s.Kind == KindOOM {
				class = "bad"
			}
			g.rect(class, name, x, y+2+float64(k)*row, w, max(row-0.5, 1))
		}
	}
}

func (g *drawing) rect(class, name string, x, y, w, h float64) {
	fill := ""
	if name != "" && class != "bad" {
		fill = ` fill="` + g.hue[name] + `"`
	}
	if class != "" {
		class = ` class="` + class + `"`
	}
	g.printf(`<rect%s%s x="%.1f" y="%.1f" width="%.1f" height="%.1f"/>`, class, fill, x, y, w, h)
}

// tick is the distance of two marks on the time axis.
func (g *drawing) tick() time.Duration {
	for _, d := range []time.Duration{5 * time.Second, 10 * time.Second, 30 * time.Second, time.Minute, 2 * time.Minute, 5 * time.Minute, 10 * time.Minute,
		20 * time.Minute, 30 * time.Minute, time.Hour, 2 * time.Hour, 4 * time.Hour} {
		if g.end/d <= 12 {
			return d
		}
	}
	return 8 * time.Hour
}

// axis draws the marks of time from top to where the drawing has come, with
// their words below when labels is set.
func (g *drawing) axis(top float64, labels bool) {
	step := g.tick()
	for t := time.Duration(0); t <= g.end; t += step {
		g.printf(`<line class="grid" x1="%.1f" x2="%.1f" y1="%.1f" y2="%.1f" opacity=".7"/>`, g.x(t), g.x(t), top, g.y)
		if labels {
			g.text(g.x(t), g.y+12, "small muted", "middle", clock(t))
		}
	}
	if labels {
		g.y += 22
	}
}

func clock(t time.Duration) string {
	s := int(t.Seconds())
	if s >= 3600 {
		return fmt.Sprintf("%d:%02d:%02d", s/3600, s/60%60, s%60)
	}
	return fmt.Sprintf("%d:%02d", s/60, s%60)
}

// memory draws who holds a device's memory over time, one owner on the other.
func (g *drawing) memory(id resource.DeviceID, total resource.Bytes) {
	bottom := g.y + memHeight
	scale := memHeight / float64(total) * 0.96
	var below []float64 // by column
	const columns = plotWidth * 2
	below = make([]float64, columns+1)
	for _, owner := range owners(g.r.Owners[id]) {
		g.area(owner, g.r.Memory[id][owner], below, bottom, scale)
	}
	y := bottom - float64(total)*scale
	g.printf(`<line class="total" x1="%d" x2="%d" y1="%.1f" y2="%.1f"/>`, svgLeft, svgLeft+plotWidth, y, y)
	g.printf(`<line class="axis" x1="%d" x2="%d" y1="%.1f" y2="%.1f"/>`, svgLeft, svgLeft+plotWidth, bottom, bottom)
	g.text(svgLeft-10, y+4, "small num", "end", fmt.Sprintf("%.0f GiB", float64(total)/float64(1024*resource.MiB)))
	g.text(svgLeft-10, bottom, "small num", "end", "0")
	g.text(svgLeft-10, (y+bottom)/2+4, "small muted", "end", "memory")
	g.y = bottom
}

// owners sorts: the system at the bottom, then workers, then what is in the way.
func owners(names []string) []string {
	out := slices.Clone(names)
	rank := func(s string) int {
		switch {
		case s == "~system":
			return 0
		case strings.HasPrefix(s, "~"):
			return 2
		}
		return 1
	}
	slices.SortStableFunc(out, func(a, b string) int { return rank(a) - rank(b) })
	return out
}

// area draws one owner's part of the stack and adds it to what lies below.
func (g *drawing) area(owner string, points []Point, below []float64, bottom, scale float64) {
	columns := len(below) - 1
	mine := make([]float64, len(below))
	some, k := false, 0
	for i := range mine {
		t := time.Duration(float64(g.end) * float64(i) / float64(columns))
		for k+1 < len(points) && points[k+1].At <= t {
			k++
		}
		if len(points) > 0 && points[k].At <= t {
			mine[i] = float64(points[k].Bytes) * scale
			some = some || mine[i] > 0.2
		}
	}
	if some {
		class, fill := ownerClass(owner), ""
		if class == "" {
			fill = ` fill="` + g.hue[owner] + `"`
		} else {
			class = ` class="` + class + `"`
		}
		g.printf(`<path%s%s d="%s"><title>%s</title></path>`, class, fill, stack(below, mine, bottom), html.EscapeString(strings.TrimPrefix(owner, "~")))
	}
	for i := range below {
		below[i] += mine[i]
	}
}

func ownerClass(owner string) string {
	switch {
	case owner == "~system":
		return "system"
	case strings.HasPrefix(owner, "~leak"):
		return "leak"
	case strings.HasPrefix(owner, "~"):
		return "ext"
	}
	return ""
}

// stack is the outline of steps between below and below plus mine; stretches
// without any are left out.
func stack(below, mine []float64, bottom float64) string {
	var b strings.Builder
	step := float64(plotWidth) / float64(len(below)-1)
	at := func(i int) float64 { return svgLeft + float64(i)*step }
	for i := 0; i < len(mine); {
		if mine[i] <= 0 {
			i++
			continue
		}
		j := i
		for j < len(mine) && mine[j] > 0 {
			j++
		}
		fmt.Fprintf(&b, "M%.1f %.1f", at(i), bottom-below[i])
		edge(&b, i, j, 1, at, func(k int) float64 { return bottom - below[k] - mine[k] })
		fmt.Fprintf(&b, "H%.1f", at(min(j, len(mine)-1)))
		edge(&b, j-1, i-1, -1, at, func(k int) float64 { return bottom - below[k] })
		b.WriteString("Z")
		i = j
	}
	return b.String()
}

// edge draws steps from column i up to j, without those that change nothing.
func edge(b *strings.Builder, i, j, dir int, at func(int) float64, y func(int) float64) {
	last := math.Inf(1)
	for k := i; k != j; k += dir {
		if v := y(k); math.Abs(v-last) > 0.05 {
			x := at(k)
			if dir < 0 {
				x = at(k + 1)
			}
			fmt.Fprintf(b, "H%.1fV%.1f", x, v)
			last = v
		}
	}
	if dir < 0 {
		fmt.Fprintf(b, "H%.1f", at(i+(j-i)+1))
	}
}

// waits draws a dot for each job: when it came, and how long until its run.
func (g *drawing) waits() {
	longest := time.Second
	for _, j := range g.r.Jobs {
		longest = max(longest, j.Wait)
	}
	g.y += blockGap
	g.text(24, g.y-8, "head", "", "Waits: when a job came, and how long until its run began")
	top, bottom := g.y, g.y+waitHeight
	scale := waitHeight * 0.96 / longest.Seconds()
	for k := range 3 {
		v := longest * time.Duration(k) / 2
		y := bottom - v.Seconds()*scale
		g.printf(`<line class="grid" x1="%d" x2="%d" y1="%.1f" y2="%.1f"/>`, svgLeft, svgLeft+plotWidth, y, y)
		g.text(svgLeft-10, y+4, "small num", "end", short(v.Seconds()))
	}
	for _, j := range g.r.Jobs {
		class, fill := "", ` fill="`+g.hue[j.Plugin]+`"`
		if j.Status != jobs.Completed {
			class, fill = ` class="bad"`, ""
		}
		g.printf(`<circle%s%s cx="%.1f" cy="%.1f" r="2.4" opacity=".75"/>`, class, fill, g.x(j.Submitted), bottom-j.Wait.Seconds()*scale)
	}
	g.y = bottom
	g.axis(top, true)
}

func (g *drawing) legend() {
	g.y += 16
	x := float64(24)
	put := func(draw func(x float64), label string) {
		if x+20+float64(len(label))*6.6 > svgWidth-24 {
			x = 24
			g.y += 20
		}
		draw(x)
		g.text(x+20, g.y, "small", "", label)
		x += 34 + float64(len(label))*6.6
	}
	for _, name := range g.r.Trace.Names() {
		put(func(x float64) { g.rect("", name, x, g.y-10, 14, 11) }, name)
	}
	x = 24
	g.y += 20
	first := g.r.Trace.Names()
	if len(first) == 0 {
		return
	}
	put(func(x float64) { g.rect("", first[0], x, g.y-10, 14, 11) }, "running")
	put(func(x float64) { g.rect("res", first[0], x, g.y-10, 14, 11) }, "loaded, idle")
	put(func(x float64) { g.rect("load", first[0], x, g.y-6, 14, 4) }, "loading")
	put(func(x float64) { g.rect("stop", "", x, g.y-10, 14, 11) }, "being stopped")
	put(func(x float64) { g.rect("back", "", x, g.y-10, 14, 11) }, "gone, memory not back")
	put(func(x float64) { g.printf(`<path class="badline" d="M%.1f %.1fl6 6m0 -6l-6 6"/>`, x+4, g.y-8) }, "out of memory")
	put(func(x float64) { g.rect("bad", "", x, g.y-10, 14, 11) }, "failed run or job")
	put(func(x float64) { g.rect("system", "", x, g.y-10, 14, 11) }, "system")
	put(func(x float64) { g.rect("ext", "", x, g.y-10, 14, 11) }, "programs of others")
	put(func(x float64) { g.rect("leak", "", x, g.y-10, 14, 11) }, "leaked")
	g.y += 26
}
