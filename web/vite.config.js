// Builds web/ into web/dist, which is committed: running the page needs no npm.
// It also writes the licences of all packages in the page, and build.json, by which `make check`
// detects that the sources have changed.
import { createHash } from "node:crypto";
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { defineConfig } from "vite";

const sha256 = (content) => createHash("sha256").update(content).digest("hex");

/** The same as `sources_digest` in scripts/check_web.py. */
function sourcesDigest(root) {
  const inSrc = readdirSync(join(root, "src")).map((name) => `src/${name}`);
  const names = ["index.html", "package-lock.json", "tsconfig.json", "vite.config.js", ...inSrc];
  const lines = names.sort().map((name) => `${name} ${sha256(readFileSync(join(root, name)))}\n`);
  return sha256(lines.join(""));
}

/** The licence texts of all packages in the lock file. The bundler cannot list them, because
 * livekit-client is already a bundle. */
function licences(root) {
  const { packages } = JSON.parse(readFileSync(join(root, "package-lock.json"), "utf8"));
  const bundled = Object.entries(packages).filter(([path, entry]) => path !== "" && !entry.dev);
  const texts = bundled.map(([path, { version, license }]) => {
    const file = readdirSync(join(root, path)).find((name) => /^licen[cs]e/i.test(name));
    const text = file === undefined ? "" : readFileSync(join(root, path, file), "utf8").trim();
    return `${path.replace(/.*node_modules\//, "")} ${version} (${license})\n\n${text}`.trim();
  });
  return texts.join(`\n\n${"-".repeat(80)}\n\n`) + "\n";
}

const buildRecord = {
  name: "build-record",
  generateBundle() {
    const root = import.meta.dirname;
    const record = JSON.stringify({ sources: sourcesDigest(root) }) + "\n";
    this.emitFile({ type: "asset", fileName: "build.json", source: record });
    this.emitFile({ type: "asset", fileName: "assets/licences.txt", source: licences(root) });
  },
};

export default defineConfig({
  base: "./",
  plugins: [buildRecord],
  build: {
    target: "es2022",
    assetsInlineLimit: 0,
    modulePreload: { polyfill: false },
    chunkSizeWarningLimit: 600, // mostly livekit-client
  },
});
