package relay

// Manifest is the declared state of the relay: which apps exist, their webhook
// endpoints, who may reach them. It is read from one YAML file, refused whole
// when anything in it is wrong, and then applied as one value that nobody
// changes.
type Manifest struct {
	Apps map[AppID]App
}
