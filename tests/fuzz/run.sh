#!/usr/bin/env bash
# Fuzzes decoders of outside bytes with libFuzzer, on the stable toolchain.
#
#   tests/fuzz/run.sh [--seconds N] [TARGET...]    each target until it has run N seconds in all (600)
#   tests/fuzz/run.sh --input FILE TARGET          one input, as a crash is reproduced
#   tests/fuzz/run.sh --minimize [TARGET...]       what the grown corpora add, into tests/fuzz/corpus
#
# It may be interrupted at any time: the same command goes on where it was. Grown corpora, crashes,
# seconds done and logs lie in STATE (default: `fuzzing/state` in the target directory).
set -euo pipefail
cd "$(dirname "$0")/../.."

seconds=600 mode=fuzz input=
targets=()
while [ $# -gt 0 ]; do
    case "$1" in
    --seconds) seconds="$2"; shift ;;
    --input) mode=input input="$2"; shift ;;
    --minimize) mode=minimize ;;
    -*) echo "$1 is none of --seconds, --input, --minimize" >&2; exit 2 ;;
    *) targets+=("$1") ;;
    esac
    shift
done
[ ${#targets[@]} -gt 0 ] || for folder in tests/fuzz/corpus/*/; do targets+=("$(basename "$folder")"); done

# The flags of cargo-fuzz without a sanitizer. An explicit target keeps them from build scripts.
triple="$(rustc -vV | sed -n 's/^host: //p')"
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-target}/fuzzing" CARGO_INCREMENTAL=0
export RUSTFLAGS="-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
-Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
-Cllvm-args=-sanitizer-coverage-trace-compares -Cllvm-args=-simplifycfg-branch-fold-threshold=0 --cfg fuzzing"
cargo build --quiet --target "$triple" -p tributary-fuzz --features libfuzzer --bin fuzz
fuzz="$CARGO_TARGET_DIR/$triple/debug/fuzz"
state="${STATE:-$CARGO_TARGET_DIR/state}"

# Longest input, bytes: a file of the corpus has at most 64 KiB.
max_len() {
    case "$1" in
    wire | manifest | record | export | csv) echo 16384 ;;
    kit | note | tensors) echo 2048 ;;
    *) echo 65536 ;;
    esac
}

for target in "${targets[@]}"; do
    kept="tests/fuzz/corpus/$target" grown="$state/$target/corpus"
    [ -d "$kept" ] || { echo "there is no target $target" >&2; exit 2; }
    mkdir -p "$grown" "$state/$target/crashes"
    export FUZZ_TARGET="$target"
    # Wall time, on a machine that may be busy: 30 s here are less than one of an optimised program.
    limits=(-rss_limit_mb=2048 -malloc_limit_mb=600 -timeout=30 "-max_len=$(max_len "$target")")
    case "$mode" in
    input) exec "$fuzz" "${limits[@]}" "$input" ;;
    minimize)
        # Of what adds coverage to the kept files, inputs of all sizes, evenly: up to 48 files and
        # 768 KiB, so that there is room for findings.
        merged="$(mktemp -d)"
        cp "$kept"/* "$merged"
        "$fuzz" "${limits[@]}" -merge=1 "$merged" "$grown" 2>"$state/$target/merge.log"
        for file in "$kept"/*; do rm "$merged/$(basename "$file")"; done
        room=$((48 - $(find "$kept" -type f | wc -l))) bytes=$(cat "$kept"/* | wc -c)
        all=$(find "$merged" -type f | wc -l)
        find "$merged" -type f -size -64k -printf '%s %p\n' | sort -n |
            awk -v all="$all" -v room="$room" 'room > 0 && int(NR * room / all) > int((NR - 1) * room / all)' |
            while read -r size file; do
                bytes=$((bytes + size))
                [ "$bytes" -le 786432 ] && cp "$file" "$kept/"
            done || true
        rm -r "$merged"
        ;;
    fuzz)
        # Counted in slices, so that an interruption loses five minutes at most. Each slice begins with the whole corpus.
        done_file="$state/$target/seconds"
        ran=$(cat "$done_file" 2>/dev/null || echo 0)
        while [ "$ran" -lt "$seconds" ]; do
            slice=$((seconds - ran < 300 ? seconds - ran : 300))
            nice -n 10 "$fuzz" "${limits[@]}" "-max_total_time=$slice" -print_final_stats=1 \
                "-artifact_prefix=$state/$target/crashes/" "$grown" "$kept" 2>"$state/$target/last.log" || {
                echo "$target: a finding after $ran s; see $state/$target/last.log" >&2
                exit 1
            }
            ran=$((ran + slice))
            echo "$ran" >"$done_file"
            runs=$(sed -n 's/^stat::number_of_executed_units: //p' "$state/$target/last.log")
            echo "$(date -u +%FT%TZ) $target $slice s ${runs:-0} runs" | tee -a "$state/runs.log"
        done
        ;;
    esac
done
