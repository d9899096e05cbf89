// An app like anybody's, in a module of its own: copy this folder and go on.
module shop

go 1.26
