package plugins

import (
	"testing"

	"github.com/stretchr/testify/require"
)

const graphTool = `{"format_version":"2.0",
 "install":{"python_path":"/opt/envs/graph/bin/python"},
 "code":{"name":"graph","module":"graph.capability","class":"Graph","structural_surface":{
  "methods":[{"name":"add_nodes","signature":"(self, nodes, force=False)","params":["nodes","force"]},{"name":"query","signature":"(...)"}],
  "properties":["name","version"],"attributes":[{"name":"limit","type":"int"}]}}}`

func adapterFile(task, members string) string {
	return `{"unit":"adapter","name":"x.` + task + `","version":"0.0.1","task_name":"` + task + `","module":"x","class":"` + task + `","protocol_members":` + members + `}`
}

func TestCatalog_BindsTheAdaptersThatFit(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.write("a/graph.json", graphTool)
	b.write("a/adapter-fits.json", adapterFile("Fits", `{"methods":[{"name":"add_nodes","params":["nodes"]},{"name":"query","params":["text"]}],"properties":["version"]}`))
	b.write("a/adapter-method.json", adapterFile("NoMethod", `{"methods":[{"name":"remove_nodes","params":["nodes"]}]}`))
	b.write("a/adapter-params.json", adapterFile("Params", `{"methods":[{"name":"add_nodes","params":["items"]}]}`))
	b.write("a/adapter-long.json", adapterFile("Long", `{"methods":[{"name":"add_nodes","params":["nodes","force","more"]}]}`))
	b.write("a/adapter-property.json", adapterFile("Property", `{"properties":["limit"]}`))
	b.write("a/adapter-broken.json", `{"unit":"adapter","name":"x.Broken","module":7}`)
	b.write("a/older.json", `{"name":"older","module":"m","class":"C","python_path":"/opt/envs/older/bin/python"}`)
	b.discover()

	_, man, err := b.c.Instance("graph")
	require.NoError(t, err)
	require.Equal(t, []string{"x:Fits"}, man.Adapters)
	_, man, err = b.c.Instance("older")
	require.NoError(t, err)
	require.Empty(t, man.Adapters, "no surface was recorded: nothing says that an adapter fits")
	require.Len(t, b.c.Adapters(), 6)
}

func TestManifest_NamesItsOwnAdapters(t *testing.T) {
	t.Parallel()
	const head = "name: tool\nmodule: m\nclass: C\n"
	m, err := ParseManifest("tool.yaml", []byte(head+"adapters: ['lib.tasks:Summarise']\n"))
	require.NoError(t, err)
	require.Equal(t, []string{"lib.tasks:Summarise"}, m.Adapters)
	for _, bad := range []string{"[Summarise]", "['a:']", "['a:b:c']", "['a b:c']", "lib:Summarise", "[1]"} {
		_, err := ParseManifest("tool.yaml", []byte(head+"adapters: "+bad+"\n"))
		require.ErrorContains(t, err, "adapters", bad)
	}
}
