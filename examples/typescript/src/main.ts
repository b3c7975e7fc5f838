// Computes attention of a real transformer layer on an attnd server, compares it with
// float64, measures the smallest call, and shows what the error of a wrong request looks like.
//
//     node main.js (HOST:PORT | unix:PATH) FOLDER
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { performance } from 'node:perf_hooks';

import * as grpc from '@grpc/grpc-js';
import * as protoLoader from '@grpc/proto-loader';

import type { ProtoGrpcType } from './gen/attention.js';
import type { AttentionRequest } from './gen/attnd/v1/AttentionRequest.js';
import type { AttentionResponse__Output } from './gen/attnd/v1/AttentionResponse.js';
import type { AttentionServiceClient } from './gen/attnd/v1/AttentionService.js';
import type { Tensor } from './gen/attnd/v1/Tensor.js';
import type { BadRequest__Output } from './gen/google/rpc/BadRequest.js';
import type { ErrorInfo__Output } from './gen/google/rpc/ErrorInfo.js';
import type { ProtoGrpcType as StatusGrpcType } from './gen/status.js';

/** The error of PyTorch's float32 kernel on the same data. */
const ALLOWED_ERROR = 1.3e-6;
const TIMED_CALLS = 500;
const DEADLINE_MS = 60_000;

// Loads the contract and the messages in error details, whose Any fields `json` unpacks.
const root = join(import.meta.dirname, '..');
const proto = join(root, '../../proto');
const { attnd, google } = grpc.loadPackageDefinition(
  protoLoader.loadSync(
    ['attnd/v1/attention.proto', 'google/rpc/status.proto', 'google/rpc/error_details.proto'],
    {
      includeDirs: [proto, join(root, 'node_modules/google-proto-files')],
      longs: Number,
      enums: String,
      json: true,
    },
  ),
) as unknown as ProtoGrpcType & StatusGrpcType;

/** Returns the shape and the little-endian elements of a .npy file of version 1. */
function loadNpy(path: string, type: string): { shape: number[]; data: Buffer } {
  const file = readFileSync(path);
  const start = 10 + file.readUInt16LE(8); // magic, version, length, a Python dictionary
  const header = file.toString('latin1', 10, start);
  const shape = /'shape': \(([^)]*)\)/.exec(header)?.[1].match(/\d+/g)?.map(Number);
  if (!header.includes(`'descr': '${type}', 'fortran_order': False`) || !shape) {
    throw new Error(`${path}: expected ${type} in C order, got ${header}`);
  }
  return { shape, data: file.subarray(start) };
}

function loadTensor(path: string): Tensor {
  return { dtype: 'DATA_TYPE_F32', ...loadNpy(path, '<f4') };
}

/** Returns one row of zeros. */
function row(dimensions: number): Tensor {
  return { dtype: 'DATA_TYPE_F32', shape: [1, dimensions], data: Buffer.alloc(4 * dimensions) };
}

/** Makes a call with a deadline, after which the server stops computing. */
function attention(
  client: AttentionServiceClient,
  request: AttentionRequest,
): Promise<AttentionResponse__Output> {
  return new Promise((resolve, reject) => {
    client.attention(request, { deadline: Date.now() + DEADLINE_MS }, (error, reply) =>
      reply ? resolve(reply) : reject(error),
    );
  });
}

/** Returns the largest difference; infinite if the lengths differ, NaN for a NaN. */
function worstError(got: Buffer, expected: Buffer): number {
  let worst = got.length * 2 === expected.length ? 0 : Infinity;
  for (let i = 0; i < expected.length / 8 && worst !== Infinity; i++) {
    worst = Math.max(worst, Math.abs(got.readFloatLE(4 * i) - expected.readDoubleLE(8 * i)));
  }
  return worst;
}

async function realAttention(client: AttentionServiceClient, folder: string): Promise<number> {
  const [query, key, value] = ['query', 'key', 'value'].map((name) =>
    loadTensor(join(folder, `${name}.npy`)),
  );
  const start = performance.now();
  const { output, stats } = await attention(client, { query, key, value });
  const took = performance.now() - start;
  const { seconds = 0, nanos = 0 } = stats?.computeTime ?? {};
  console.log(
    `attention     [${output?.shape}] by ${stats?.isa} ${stats?.kernel} on ${stats?.threads} ` +
      `thread(s): ${(seconds * 1e3 + nanos / 1e6).toFixed(2)} ms of ${took.toFixed(2)} ms`,
  );
  const expected = loadNpy(join(folder, 'expected.npy'), '<f8');
  return worstError(output?.data ?? Buffer.alloc(0), expected.data);
}

/**
 * Returns the p50 of a call that only goes to the server and back, in
 * microseconds. As many calls before these warm up the JIT compiler.
 */
async function smallestCall(client: AttentionServiceClient): Promise<number> {
  const times: number[] = [];
  for (let i = 0; i < 2 * TIMED_CALLS; i++) {
    const start = performance.now();
    await attention(client, { query: row(1), key: row(1), value: row(1) });
    times.push(performance.now() - start);
  }
  return times.slice(TIMED_CALLS).sort((a, b) => a - b)[TIMED_CALLS / 2] * 1e3;
}

/** Sends a key with the wrong head_dim, and prints the error, which names the field. */
async function refusedCall(client: AttentionServiceClient): Promise<void> {
  try {
    await attention(client, { query: row(2), key: row(3), value: row(2) });
  } catch (error) {
    const { code, metadata } = error as grpc.ServiceError;
    const [status] = metadata.get('grpc-status-details-bin') as Buffer[];
    const { details = [] } = google.rpc.Status.deserialize(status);
    const find = <T>(type: string) =>
      details.find((any) => '@type' in any && any['@type'].endsWith(`/google.rpc.${type}`)) as
        | T
        | undefined;
    const reason = find<ErrorInfo__Output>('ErrorInfo')?.reason;
    for (const { field, description } of find<BadRequest__Output>('BadRequest')?.fieldViolations ?? []) {
      console.log(`refused       ${grpc.status[code]}, ${reason} in ${field}`);
      console.log(`              ${description}`);
    }
  }
}

const [server, folder] = process.argv.slice(2);
if (!server || !folder) throw new Error('usage: main.js (HOST:PORT | unix:PATH) FOLDER');
// By default, gRPC refuses answers above 4 MiB, does not retry requests above 1 MiB, and
// sends the tensors through the web proxy that the environment names.
const client = new attnd.v1.AttentionService(server, grpc.credentials.createInsecure(), {
  'grpc.max_receive_message_length': -1,
  'grpc.per_rpc_retry_buffer_size': 2 ** 31,
  'grpc.retry_buffer_size': 2 ** 31,
  'grpc.enable_http_proxy': 0,
  'grpc.service_config': readFileSync(join(proto, 'attnd/v1/attention_grpc_service_config.json'), 'utf8'),
});
const worst = await realAttention(client, folder);
console.log(`worst error   ${worst.toExponential(3)}, allowed ${ALLOWED_ERROR.toExponential()}`);
console.log(`smallest call p50 ${(await smallestCall(client)).toFixed(1)} us of ${TIMED_CALLS}`);
await refusedCall(client);
client.close();
process.exitCode = worst <= ALLOWED_ERROR ? 0 : 1;
