# The example app of deploy/examples/go with the agent in front of its command.
FROM golang:1.26 AS build
WORKDIR /src
COPY . .
RUN CGO_ENABLED=0 go build -trimpath -buildvcs=false -ldflags "-s -w" -o /out/ ./cmd/postern
RUN CGO_ENABLED=0 go build -C deploy/examples/go -trimpath -buildvcs=false -o /out/shop .

FROM gcr.io/distroless/static-debian12:nonroot
COPY --from=build /out/postern /out/shop /usr/local/bin/
USER 65532:65532
ENTRYPOINT ["/usr/local/bin/postern", "run", "--"]
CMD ["/usr/local/bin/shop"]
