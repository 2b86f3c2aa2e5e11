// openai-node: chat, stream, structured output, tools, responses.
import assert from "node:assert";
import OpenAI from "openai";
import { VERSION } from "openai/version";

console.log("openai-node", VERSION);
const client = new OpenAI({ baseURL: `${process.argv[2]}/v1`, apiKey: "none", maxRetries: 0 });
const messages = [{ role: "user", content: "What is 12 plus 7?" }];
const schema = {
  type: "object",
  properties: { a: { type: "integer", minimum: 0, maximum: 9 } },
  required: ["a"],
  additionalProperties: false,
};

const answer = await client.chat.completions.create({ model: "demo", messages, temperature: 0 });
assert(answer.choices[0].message.content.includes("19"));
console.log("chat:", answer.choices[0].message.content);

let text = "";
const stream = await client.chat.completions.create({
  model: "demo", messages, temperature: 0, stream: true, stream_options: { include_usage: true },
});
let usage = null;
for await (const chunk of stream) {
  text += chunk.choices[0]?.delta?.content ?? "";
  usage = chunk.usage ?? usage;
}
assert(text.includes("19"));
console.log("stream:", text, usage.total_tokens, "tokens");

const held = await client.chat.completions.create({
  model: "demo", messages, max_tokens: 50,
  response_format: { type: "json_schema", json_schema: { name: "x", strict: true, schema } },
});
console.log("structured output:", JSON.parse(held.choices[0].message.content));

const runner = client.chat.completions.stream({
  model: "demo", messages, max_tokens: 100, tool_choice: "required", parallel_tool_calls: false,
  tools: [{ type: "function", function: { name: "pick", parameters: schema } }],
});
const final = await runner.finalChatCompletion();
const call = final.choices[0].message.tool_calls[0];
assert.deepEqual(Object.keys(JSON.parse(call.function.arguments)), ["a"]);
console.log("tools:", call.function.name, call.function.arguments);

const events = client.responses.stream({ model: "demo", input: "What is 12 plus 7?", temperature: 0 });
const response = await events.finalResponse();
assert(response.output_text.includes("19"));
console.log("responses:", response.output_text);
