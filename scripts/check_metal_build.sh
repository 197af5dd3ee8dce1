#!/usr/bin/env bash
# Compiles asft with Metal on a machine that is not a Mac, and links it: scripts/check_metal_build.sh [--keep-zig]
#
# zig, installed from PyPI into target/metal/, brings a C compiler with macOS's headers and a linker. The build goes there
# too: about 4 GB. The texts that Metal would compile are compiled as C++, in which clang has address spaces, against
# src/ops/gpu/shim/metal_stdlib. The linker gets empty stubs in place of Apple's frameworks; every symbol left to be found at run time must
# be named as those frameworks name theirs. Nothing built is run. Run this script when dependencies or device code change; CI
# does not. --keep-zig uses what an earlier call installed.
set -euo pipefail
cd "$(dirname "$0")/.."

keep_zig=false
case "${1:-}" in
    "") ;;
    --keep-zig) keep_zig=true ;;
    *) echo "usage: $0 [--keep-zig]" >&2; exit 2 ;;
esac

step() { printf '== %s\n' "$*"; }
fail() { printf 'failed: %s\n' "$*" >&2; exit 1; }

root=$PWD/target/metal
target=aarch64-apple-darwin

if [ "$keep_zig" = false ] || ! "$root/venv/bin/python" -m ziglang version > /dev/null 2>&1; then
    step "zig"
    rm -rf "$root/venv"
    mkdir -p "$root"
    python3 -m venv "$root/venv"
    "$root/venv/bin/pip" install --quiet --no-cache-dir --disable-pip-version-check ziglang==0.17.1 lief==1.0.0
fi
rustup target list --installed | grep -qx "$target" || rustup target add "$target"

step "stubs"
rm -rf "$root/bin" "$root/sdk"
mkdir -p "$root/bin" "$root/sdk/usr/lib"
# rustc and build scripts name the machine Apple's way, zig its own; zig also adds checks of undefined behaviour.
cat > "$root/bin/cc" << END
#!/usr/bin/env bash
given=()
while [ \$# -gt 0 ]; do
    case "\$1" in
        -arch | -isysroot) shift ;;
        --target=* | -mmacosx-version-min=*) ;;
        *) given+=("\$1") ;;
    esac
    shift
done
exec "$root/venv/bin/python" -m ziglang cc -target aarch64-macos -fno-sanitize=undefined "\${given[@]}"
END
printf '#!/usr/bin/env bash\nexec "%s" -m ziglang ar "$@"\n' "$root/venv/bin/python" > "$root/bin/ar"
chmod +x "$root/bin/cc" "$root/bin/ar"
# A stub of the library $2 in file $1.
stub() {
    mkdir -p "$(dirname "$1")"
    printf -- "--- !tapi-tbd\ntbd-version: 4\ntargets: [arm64-macos]\ninstall-name: '%s'\n...\n" "$2" > "$1"
}
frameworks=$root/sdk/System/Library/Frameworks
for name in CoreFoundation Foundation IOKit Metal OpenDirectory Security SystemConfiguration; do
    stub "$frameworks/$name.framework/$name.tbd" "/System/Library/Frameworks/$name.framework/$name"
done
stub "$root/sdk/usr/lib/libobjc.tbd" /usr/lib/libobjc.A.dylib
stub "$root/sdk/usr/lib/libiconv.tbd" /usr/lib/libiconv.2.dylib
# Prefixes of Core Foundation, Foundation, IOKit, Metal, Open Directory, Security, System Configuration, Objective-C.
apple='^_(k?CF|NS|k?IO|MTL|k?OD|(k?Sec|SSL|CMS|Authorization)|k?SC|(OBJC|objc|class|ivar|method|object|protocol|sel)_)'

export CC_aarch64_apple_darwin=$root/bin/cc CXX_aarch64_apple_darwin=$root/bin/cc AR_aarch64_apple_darwin=$root/bin/ar
export CARGO_TARGET_AARCH64_APPLE_DARWIN_LINKER=$root/bin/cc SDKROOT=$root/sdk ZIG_GLOBAL_CACHE_DIR=$root/cache
flags="-Clink-arg=-F$frameworks -Clink-arg=-L$root/sdk/usr/lib -Clink-arg=-Wl,-undefined,dynamic_lookup"
export CARGO_TARGET_AARCH64_APPLE_DARWIN_RUSTFLAGS=$flags
export CARGO_TARGET_DIR=$root/build CARGO_PROFILE_DEV_DEBUG=0 CARGO_INCREMENTAL=0

step "lint"
cargo clippy --locked --target "$target" --features metal --all-targets -- -D warnings
cargo clippy --locked --target "$target" --no-default-features --lib --bins -- -D warnings

step "texts for Metal"
# Those of the newest list, which is what the build embeds: beside it lie texts that earlier builds wrote.
lists=("$CARGO_TARGET_DIR/$target"/debug/build/asft-*/out/gpu_metal.rs)
newest=${lists[0]}
for list in "${lists[@]}"; do [ "$newest" -nt "$list" ] || newest=$list; done
mapfile -t texts < <(grep -o '/[^"]*\.metal' "$newest")
[ "${#texts[@]}" -gt 0 ] || fail "build.rs wrote no texts for Metal"
for text in "${texts[@]}"; do
    for value in float half bfloat; do
        "$root/venv/bin/python" -m ziglang c++ -std=c++17 -Wall -Wno-unused -Wno-unknown-attributes -Werror \
            -I src/ops/gpu/shim -DVALUE="$value" -x c++ -c "$text" -o "$root/text.o" ||
            fail "$(basename "$text") with $value"
    done
done

step "build"
cargo build --locked --target "$target" --features metal
asft=$CARGO_TARGET_DIR/$target/debug/asft
"$root/venv/bin/python" - "$asft" "$apple" << 'END'
import re
import sys

import lief

# Otherwise it logs what it makes of empty parts.
lief.logging.disable()
path, apple = sys.argv[1:]
program = lief.MachO.parse(path).at(0)
assert program.header.cpu_type == lief.MachO.Header.CPU_TYPE.ARM64, program.header.cpu_type
linked = [library.name for library in program.libraries]
assert any(name.endswith("/Metal") for name in linked), linked
# Libraries are numbered from 1; a symbol without a number is looked up in all of them.
numbers = range(1, len(linked) + 1)
late = sorted({symbol.name for symbol in program.imported_symbols if symbol.library_ordinal not in numbers})
unknown = [name for name in late if not re.match(apple, name)]
assert "_MTLCreateSystemDefaultDevice" in late and not unknown, f"not of Apple's frameworks: {unknown}"
print(f"{path}: {len(late)} symbols of Apple's frameworks, looked up when it starts")
END
echo "all checks passed"
