# Start `unmask serve` with the options given and set port; it is stopped when the script ends. Sourced by the others.
serve() {
    log=$(mktemp)
    unmask serve --port 0 --dtype float32 "$@" 2> "$log" &
    server=$!
    trap 'kill "$server"; wait "$server" || true; rm -f "$log"' EXIT
    until port=$(sed -n 's/.*serving on http:.*:\([0-9]*\)$/\1/p' "$log") && [ -n "$port" ]; do
        kill -0 "$server" || { cat "$log"; exit 1; }
        sleep 0.2
    done
}
