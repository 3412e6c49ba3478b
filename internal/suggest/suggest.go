// Package suggest finds the known word nearest to a mistyped one, for the
// "did you mean" of every strict decoder. Pure; imports nothing of ours.
package suggest

import "strings"

// Nearest returns the known word most like name, or "" when none is near enough
// to be worth saying. Case, '-' and '_' do not count as differences.
func Nearest(name string, known []string) string {
	best, bestDist := "", len(name)/3+2 // one more than the farthest that is accepted
	folded := fold(name)
	for _, k := range known {
		f := fold(k)
		d := distance(folded, f)
		// A word that was cut short ("level" for "log_level") is near, too.
		if d > 1 && len(folded) >= 4 && (strings.HasSuffix(f, folded) || strings.HasPrefix(f, folded)) {
			d = 1
		}
		if d < bestDist && d < len(folded) { // something must be in common
			best, bestDist = k, d
		}
	}
	return best
}

// DidYouMean is the sentence about Nearest with a leading blank: ` (did you mean "x"?)`, or "".
func DidYouMean(name string, known []string) string {
	if n := Nearest(name, known); n != "" {
		return ` (did you mean "` + n + `"?)`
	}
	return ""
}

func fold(s string) string { return strings.ReplaceAll(strings.ToLower(s), "-", "_") }

// distance is the optimal string alignment distance: insert, delete, replace
// and the swap of two neighbours each cost one.
func distance(a, b string) int {
	if len(a) > 64 || len(b) > 64 { // no key of ours is that long; bounds the work for hostile names
		return 64
	}
	prev2, prev, cur := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range prev {
		prev[j] = j
	}
	for i := 1; i <= len(a); i++ {
		cur[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			cur[j] = min(prev[j]+1, cur[j-1]+1, prev[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				cur[j] = min(cur[j], prev2[j-2]+1)
			}
		}
		prev2, prev, cur = prev, cur, prev2
	}
	return prev[len(b)]
}
