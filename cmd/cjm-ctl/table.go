package main

import (
	"io"
	"strings"
)

// column is one column of a table. Flex columns give way, down to min columns,
// when the table is wider than the terminal.
type column struct {
	title string
	flex  bool
	min   int
	right bool
}

// table collects rows and prints them aligned. Cells are made harmless here, so
// callers may put in what plugins and users wrote.
type table struct {
	cols []column
	rows [][]string
	// paint colours a finished cell; nil leaves it plain. text is the cell as
	// given, padded what is printed.
	paint func(col int, text, padded string) string
}

func (t *table) row(cellTexts ...string) {
	row := make([]string, len(t.cols))
	for i := range row {
		row[i] = "-"
		if i < len(cellTexts) && cellTexts[i] != "" {
			row[i] = harmless(cellTexts[i], false)
		}
	}
	t.rows = append(t.rows, row)
}

const gap = 2 // blanks between columns

// widths chooses the width of every column. limit 0 means unlimited.
func (t *table) widths(limit int) []int {
	w := make([]int, len(t.cols))
	total := gap * (len(t.cols) - 1)
	for i, c := range t.cols {
		w[i] = cells(c.title)
		for _, r := range t.rows {
			w[i] = max(w[i], cells(r[i]))
		}
		total += w[i]
	}
	for limit > 0 && total > limit {
		// The widest column that may still shrink gives one column.
		widest := -1
		for i, c := range t.cols {
			if c.flex && w[i] > max(c.min, cells(c.title)) && (widest < 0 || w[i] > w[widest]) {
				widest = i
			}
		}
		if widest < 0 {
			break // a terminal this narrow wraps
		}
		w[widest]--
		total--
	}
	return w
}

// write prints the table; limit is the terminal's width, 0 for a pipe or file.
func (t *table) write(to io.Writer, limit int, header func(string) string) error {
	w := t.widths(limit)
	var b strings.Builder
	line := func(row []string, paint func(col int, text, padded string) string) {
		var l strings.Builder
		for i, text := range row {
			shown := fit(text, w[i])
			switch {
			case t.cols[i].right:
				shown = strings.Repeat(" ", w[i]-cells(shown)) + shown
			case i < len(row)-1:
				shown = pad(shown, w[i])
			}
			if paint != nil {
				shown = paint(i, text, shown)
			}
			if i > 0 {
				l.WriteString(strings.Repeat(" ", gap))
			}
			l.WriteString(shown)
		}
		b.WriteString(strings.TrimRight(l.String(), " "))
		b.WriteByte('\n')
	}
	titles := make([]string, len(t.cols))
	for i, c := range t.cols {
		titles[i] = c.title
	}
	line(titles, func(_ int, _, padded string) string { return header(padded) })
	for _, r := range t.rows {
		line(r, t.paint)
	}
	_, err := io.WriteString(to, b.String())
	return err
}
