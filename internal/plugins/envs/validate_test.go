package envs

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestValidate_SaysTheLineOfEachMistake(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write(t, dir, "echo.py", "")
	for name, c := range map[string]struct {
		file, content string
		want          []string
	}{
		"manifest": {"a/manifest.yaml", "name: echo\nmodul: echo\nclass: E\nsecrets:\n  - OK\n  - name: not a name\nlimits:\n  nofile: 3\n", []string{
			`0 module is missing`, `2 modul is no known key (did you mean "module"?)`, `6 secrets[1].name is no name`, `8 limits.nofile is 3; it must be 16 or more`,
		}},
		"JSON": {"b/manifest.json", "{\n \"format_version\": \"3\",\n \"name\": \"echo\",\n \"module\": \"m\",\n \"class\": \"C\",\n \"concurrency\": 0\n}", []string{`6 concurrency is 0`}},
		"default that breaks its rule": {"c/manifest.yaml", "name: a\nmodule: echo\nclass: C\nconfig_schema:\n  properties:\n    n: {type: integer, default: 9,\n      maximum: 5}\n",
			[]string{`6 config_schema.properties.n.default breaks the schema's own rule: n: 9 is greater than maximum 5`}},
		"directory that is not there": {"d/manifest.yaml", "name: a\nmodule: echo\nclass: C\npath:\n  - ./gone\n", []string{"4 path names " + dir + "/d/gone, which is no directory"}},
		"environment":                 {"e/manifest.yaml", "name: a\nmodule: echo\nclass: C\nenv:\n  requirement: [x]\n", []string{`4 env env.requirement is no known key (did you mean "requirements"?)`}},
		"plugins.yaml":                {"f/plugins.yaml", "plugins:\n  - name: a\n    pakage: b\n", []string{`2 plugins[0].package is missing`, `3 plugins[0].pakage is no known key (did you mean "package"?)`}},
		"no YAML":                     {"g/manifest.yaml", "name: [", []string{"0 is no YAML"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			v, err := Validate(write(t, dir, c.file, c.content))
			require.NoError(t, err)
			require.Len(t, v.Problems, len(c.want), "%v", v.Problems)
			for i, p := range v.Problems {
				line := fmt.Sprintf("%d %s", p.Line, p.Message)
				if p.Key != "" {
					line = fmt.Sprintf("%d %s %s", p.Line, p.Key, p.Message)
				}
				assert.Contains(t, line, c.want[i])
			}
		})
	}
}

func TestValidate_SoundFilesHaveNoProblems(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write(t, dir, "p/echo.py", "")
	write(t, dir, "p/manifest.yaml", "name: echo\nmodule: echo\nclass: C\npath: .\nenv: {requirements: [idna==3.7]}\n")
	v, err := Validate(dir + "/p")
	require.NoError(t, err)
	assert.Empty(t, v.Problems)
	assert.Equal(t, "echo", v.Name)
	v, err = Validate(write(t, dir, "plugins.yaml", "plugins: [{manifest: p}]"))
	require.NoError(t, err)
	assert.Empty(t, v.Problems)
	assert.Equal(t, "plugins.yaml", v.Kind)
}
