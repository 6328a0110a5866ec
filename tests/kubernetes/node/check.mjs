// Checks custom resources by the types and schemas of @kubernetes-models: a JSON list on standard input, a list of
// errors for each of them on standard output. Types find names that no field has, schemas find values out of bounds.
// Owns the choice of the type. Never a built-in kind, which kubernetes-validate checks.
import { createRequire } from "node:module";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const ts = createRequire(import.meta.url)("typescript");
const here = dirname(fileURLToPath(import.meta.url));
const packages = {
  "argoproj.io": "argo-rollouts",
  "cert-manager.io": "cert-manager",
  "gateway.networking.k8s.io": "gateway-api",
  "keda.sh": "keda",
  "monitoring.coreos.com": "prometheus-operator",
};

let input = "";
for await (const part of process.stdin) input += part;
const documents = JSON.parse(input);
const errors = documents.map(() => []);

function moduleOf({ apiVersion, kind }) {
  const group = String(apiVersion).split("/")[0];
  if (group === "inference.networking.k8s.io") return "./inference_pool.js";
  return group in packages ? `@kubernetes-models/${packages[group]}/${apiVersion}/${kind}` : null;
}

// One line for each document, so that an error's line says whose it is.
const lines = documents.map((document, index) => {
  const from = moduleOf(document);
  if (from === null) errors[index].push(`${document.apiVersion} ${document.kind}: has no type here`);
  const type = from === null ? "never" : `import(${JSON.stringify(from)}).I${document.kind}`;
  return `export const d${index}: ${type} = ${from === null ? "undefined as never" : JSON.stringify(document)};`;
});
const file = join(here, "manifests.mts");
const source = ts.createSourceFile(file, lines.join("\n"), ts.ScriptTarget.ES2022, true);
const options = {
  noEmit: true,
  strict: true,
  skipLibCheck: true,
  types: [],
  target: ts.ScriptTarget.ES2022,
  module: ts.ModuleKind.NodeNext,
  moduleResolution: ts.ModuleResolutionKind.NodeNext,
};
const host = ts.createCompilerHost(options);
const { getSourceFile, fileExists } = host;
host.getSourceFile = (name, ...rest) => (name === file ? source : getSourceFile.call(host, name, ...rest));
host.fileExists = (name) => name === file || fileExists.call(host, name);
const program = ts.createProgram([file], options, host);
for (const found of [...program.getSemanticDiagnostics(source), ...program.getSyntacticDiagnostics(source)]) {
  const { line } = source.getLineAndCharacterOfPosition(found.start);
  errors[line].push(ts.flattenDiagnosticMessageText(found.messageText, "\n"));
}

for (const [index, document] of documents.entries()) {
  const from = moduleOf(document);
  if (from === null || from.startsWith(".")) continue;
  try {
    new (await import(from))[document.kind](document).validate();
  } catch (error) {
    errors[index].push(String(error.message));
  }
}
process.stdout.write(JSON.stringify(errors));
