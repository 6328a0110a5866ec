// Conversations through the official client for Node. Prints what became of each, as JSON.
import OpenAI from 'openai';

const [baseURL, apiKey, spentKey, model] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey, maxRetries: 0, timeout: 60_000 });
const messages = [{ role: 'user', content: 'Tell me about the ferry.' }];
const weather = [{ role: 'user', content: 'What is the weather in Athens?' }];
const parameters = {
  type: 'object',
  properties: {
    place: { type: 'string', enum: ['Athens', 'Oslo'] },
    days: { type: 'integer', minimum: 1, maximum: 7 },
  },
  required: ['place', 'days'],
  additionalProperties: false,
};
const tool = { type: 'function', function: { name: 'get_weather', parameters } };
const person = {
  type: 'object',
  properties: { name: { type: 'string', enum: ['Ada', 'Eve'] }, age: { type: 'integer', minimum: 1, maximum: 99 } },
  required: ['name', 'age'],
  additionalProperties: false,
};
const asked = { model, messages, max_completion_tokens: 24, seed: 7 };
const ofError = (error) => ({
  error: error.constructor.name, status: error.status, code: error.code, param: error.param, type: error.type,
});
const refused = async (ask) => {
  try {
    await ask();
  } catch (error) {
    return ofError(error);
  }
  return { error: null };
};

const cases = {
  plain: async () => {
    const answer = await client.chat.completions.create(asked);
    return { text: answer.choices[0].message.content, finish: answer.choices[0].finish_reason, usage: answer.usage };
  },
  streamed: async () => {
    const stream = await client.chat.completions.create({
      ...asked, stream: true, stream_options: { include_usage: true },
    });
    let text = '';
    let usage = null;
    for await (const chunk of stream) {
      text += chunk.choices[0]?.delta?.content ?? '';
      usage = chunk.usage ?? usage;
    }
    return { text, usage };
  },
  stream_helper: async () => {
    const stream = client.chat.completions.stream({ ...asked, logprobs: true });
    let text = '';
    stream.on('content', (delta) => { text += delta; });
    const final = await stream.finalChatCompletion();
    return { text, final: final.choices[0].message.content, logprobs: final.choices[0].logprobs.content.length };
  },
  tools: async () => {
    const answer = await client.chat.completions.create({
      ...asked, messages: weather, tools: [tool], tool_choice: 'required', max_completion_tokens: 400,
      parallel_tool_calls: false,
    });
    const call = answer.choices[0].message.tool_calls[0];
    return { name: call.function.name, arguments: JSON.parse(call.function.arguments), finish: answer.choices[0].finish_reason };
  },
  // The client runs the tool itself and sends its answer back, until the model answers in words.
  run_tools: async () => {
    const calls = [];
    const run = client.chat.completions.runTools({
      model, messages: weather, max_completion_tokens: 400, stream: true, tool_choice: { type: 'function', function: { name: 'get_weather' } },
      tools: [{
        type: 'function',
        function: {
          ...tool.function, parse: JSON.parse, description: 'The weather.',
          function: (given) => { calls.push(given); return '{"degrees": 31}'; },
        },
      }],
    }, { maxChatCompletions: 1 });
    await run.done();
    return { calls, roles: run.messages.map((message) => message.role) };
  },
  json_schema: async () => {
    const answer = await client.chat.completions.parse({
      ...asked, max_completion_tokens: 400,
      response_format: { type: 'json_schema', json_schema: { name: 'person', schema: person, strict: true } },
    });
    return JSON.parse(answer.choices[0].message.content);
  },
  completions: async () => {
    const answer = await client.completions.create({ model, prompt: 'The ferry', max_tokens: 8, seed: 7 });
    return { text: answer.choices[0].text };
  },
  responses: async () => {
    const answer = await client.responses.create({ model, input: 'The ferry?', max_output_tokens: 24, store: false });
    return { text: answer.output_text, status: answer.status };
  },
  responses_streamed: async () => {
    const stream = client.responses.stream({ model, input: 'The ferry?', max_output_tokens: 24, store: false });
    let text = '';
    stream.on('response.output_text.delta', (event) => { text += event.delta; });
    const final = await stream.finalResponse();
    return { text, final: final.output_text };
  },
  models: async () => {
    const listed = [];
    for await (const one of client.models.list()) listed.push(one.id);
    return { listed, one: (await client.models.retrieve(model)).id };
  },
  error_401: () => refused(() => new OpenAI({ baseURL, apiKey: 'sk-nobody', maxRetries: 0 }).models.list()),
  error_404: () => refused(() => client.chat.completions.create({ ...asked, model: 'nobody' })),
  error_400: () => refused(() => client.chat.completions.create({ ...asked, temperature: 9 })),
  error_429: async () => {
    const spent = new OpenAI({ baseURL, apiKey: spentKey, maxRetries: 0 });
    await refused(() => spent.chat.completions.create(asked));
    return refused(() => spent.chat.completions.create(asked));
  },
  hang_up: async () => {
    const stream = await client.chat.completions.create({ ...asked, stream: true, max_completion_tokens: 200, ignore_eos: true });
    for await (const chunk of stream) {
      stream.controller.abort();
      return chunk.choices[0].delta.role;
    }
    return null;
  },
};

const outcomes = {};
for (const [name, run] of Object.entries(cases)) {
  try {
    outcomes[name] = await run();
  } catch (error) {
    outcomes[name] = { ...ofError(error), traceback: error.stack };
  }
}
console.log(JSON.stringify(outcomes));
