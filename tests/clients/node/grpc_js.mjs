// @grpc/grpc-js with the .proto files themselves: chat, its stream, cancel, embed, rich errors, KServe's infer.
import assert from "node:assert";
import { readFileSync } from "node:fs";
import grpc from "@grpc/grpc-js";
import loader from "@grpc/proto-loader";

const version = JSON.parse(readFileSync(new URL("node_modules/@grpc/grpc-js/package.json", import.meta.url))).version;
console.log("@grpc/grpc-js", version);
const files = ["generate_service", "embedding_service", "model_service"].map((name) => `quantd/v1/${name}.proto`);
const definition = loader.loadSync([...files, "quantd/kserve/inference.proto"], {
  includeDirs: [process.env.QUANTD_PROTO], longs: Number, defaults: true, oneofs: true,
});
const { quantd, inference } = grpc.loadPackageDefinition(definition);
const address = process.argv[3];
const plain = grpc.credentials.createInsecure();
const generate = new quantd.v1.GenerateService(address, plain);
const call = (client, method, message) =>
  new Promise((resolve, reject) =>
    client[method](message, (failure, answer) => (failure ? reject(failure) : resolve(answer))));

const request = {
  messages: [{ role: "user", content: "What is 12 plus 7?" }],
  options: { sampling: { temperature: 0 } },
};
const answer = await call(generate, "ChatUnary", { request });
assert(answer.answer.text.includes("19"));
console.log("chat:", answer.answer.text, answer.done.usage.completionTokens, "tokens");

let text = "";
const kinds = new Set();
for await (const event of generate.Chat(request)) {
  kinds.add(event.event);
  text += event.delta?.text ?? "";
}
assert.equal(text, answer.answer.text);
assert.deepEqual([...kinds], ["started", "delta", "done"]);
console.log("stream:", text);

const long = generate.Generate({ text: "Once upon a time", options: { ignoreEos: true } });
let pieces = 0;
try {
  for await (const event of long) if (event.delta && ++pieces === 3) long.cancel();
} catch (failure) {
  assert.equal(failure.code, grpc.status.CANCELLED);
}
console.log("cancelled after", pieces, "pieces");

await assert.rejects(call(generate, "ChatUnary", { request: { ...request, model: "nobody" } }), (failure) => {
  assert.equal(failure.code, grpc.status.NOT_FOUND);
  assert(failure.metadata.get("grpc-status-details-bin").length > 0);
  return true;
});

const embedding = new quantd.v1.EmbeddingService(address, plain);
const embedded = await call(embedding, "Embed", { model: "mini", input: [{ text: "a fox ran home" }] });
console.log("embed:", embedded.embeddings[0].values.length, "values");

const models = await call(new quantd.v1.ModelService(address, plain), "ListModels", {});
assert(models.models.some((one) => one.name === "demo" && one.loaded));

const kserve = new inference.GRPCInferenceService(address, plain);
assert((await call(kserve, "ModelReady", { name: "demo" })).ready);
const inferred = await call(kserve, "ModelInfer", {
  modelName: "demo",
  inputs: [{ name: "text_input", datatype: "BYTES", shape: [1], contents: { bytesContents: [Buffer.from("Once")] } }],
  parameters: { max_tokens: { int64Param: 5 }, seed: { int64Param: 1 } },
});
assert.equal(inferred.outputs[0].name, "text_output");
console.log("KServe infer:", inferred.outputs[0].contents.bytesContents[0].toString());
