// ollama-js: chat, stream, format, tools, generate, embed, models of the store, abort.
import assert from "node:assert";
import { readFileSync } from "node:fs";
import { Ollama } from "ollama";

const version = JSON.parse(readFileSync(new URL("node_modules/ollama/package.json", import.meta.url))).version;
console.log("ollama-js", version);
const client = new Ollama({ host: process.argv[2] });
const messages = [{ role: "user", content: "What is 12 plus 7?" }];
const options = { temperature: 0, num_predict: 60 };
const schema = {
  type: "object",
  properties: { a: { type: "integer", minimum: 0, maximum: 9 } },
  required: ["a"],
  additionalProperties: false,
};

const answer = await client.chat({ model: "demo", messages, options });
assert(answer.message.content.includes("19"));
console.log("chat:", answer.message.content);

let text = "";
for await (const part of await client.chat({ model: "demo", messages, options, stream: true })) {
  text += part.message.content;
}
assert.equal(text, answer.message.content);
console.log("stream:", text);

const held = await client.chat({ model: "demo", messages, options, format: schema });
assert.deepEqual(Object.keys(JSON.parse(held.message.content)), ["a"]);
console.log("format:", held.message.content);

const tools = [{ type: "function", function: { name: "pick", description: "Picks a number", parameters: schema } }];
const called = await client.chat({ model: "demo", messages, options, tools });
const fedBack = [
  ...messages,
  { role: "assistant", content: "", tool_calls: [{ function: { name: "pick", arguments: { a: 1 } } }] },
  { role: "tool", content: "1", tool_name: "pick" },
];
const again = await client.chat({ model: "demo", messages: fedBack, options, tools });
assert.equal(again.done, true);
console.log("tools:", JSON.stringify(called.message.tool_calls ?? []), "|", again.message.content);

const generated = await client.generate({ model: "demo", prompt: "Once", raw: true, options: { num_predict: 5 } });
assert.equal(generated.done_reason, "length");
console.log("generate:", generated.response);

const vectors = (await client.embed({ model: "mini", input: ["a fox ran home", "now"] })).embeddings;
assert.equal(vectors.length, 2);
console.log("embed:", vectors.length, "vectors of", vectors[0].length);

await client.create({ model: "mine-js", from: "demo", system: "Be brief", parameters: { num_predict: 4 } });
await client.copy({ source: "mine-js", destination: "other-js" });
assert((await client.chat({ model: "other-js", messages })).eval_count <= 4);
assert((await client.show({ model: "other-js" })).parameters.includes("num_predict"));
const names = (await client.list()).models.map((one) => one.name);
assert(names.includes("mine-js:latest"));
await client.delete({ model: "mine-js" });
await client.delete({ model: "other-js" });
console.log("store:", names.join(", "), "| in memory:", (await client.ps()).models.length);

const long = await client.generate({ model: "demo", prompt: "Once", raw: true, stream: true, options: { num_predict: 200 } });
let cut = 0;
try {
  for await (const part of long) if (++cut === 3) long.abort();
} catch (error) {
  assert.equal(error.name, "AbortError");
}
console.log("abort after", cut, "lines");
await assert.rejects(client.chat({ model: "nobody", messages }), { status_code: 404 });
