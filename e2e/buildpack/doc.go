// Package buildpack holds the end-to-end tests of what turns an app into a
// deployed one: the buildpacks in deploy/buildpack and deploy/cnb, the example
// apps in deploy/examples, and the Procfile and app.json of the relay.
//
// The scripts are called as a platform calls them, on a scratch folder: detect,
// compile with a build, a cache and an env folder; then the .profile.d scripts and
// the Procfile's line in bash with PORT set, behind a real relay. What these tests
// need and a machine lacks (a language, shellcheck) makes them skip and say so.
//
// The one rule to know: nothing is taken from the sources but through package and
// pin, so what is tested is what would be published.
package buildpack
