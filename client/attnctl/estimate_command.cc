// attnctl estimate: what a problem costs in bytes, from a server or offline.
#include <cstddef>
#include <memory>
#include <span>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "client/attnctl/commands.h"
#include "client/attnctl/offline_estimate.h"
#include "client/attnctl/option_flags.h"

namespace attnd::attnctl {
namespace {

struct EstimateFlags {
  client::MemoryEstimateOptions options;
  std::vector<int64_t> bias_shape;
  client::DataType bias_dtype = client::DataType::kF32;
  std::vector<int64_t> mask_shape;
  bool offline = false;
  bool json = false;
};

void PrintTable(const client::MemoryEstimate& estimate,
                const EstimateFlags& flags, Session& session) {
  const int64_t concurrency =
      flags.options.concurrency != 0 ? flags.options.concurrency : 1;
  std::vector<Session::Row> rows = {
      {"input", FormatBytes(estimate.input_bytes)},
      {"output", FormatBytes(estimate.output_bytes)},
      {"workspace", FormatBytes(estimate.workspace_bytes)},
      {"flash, in all", FormatBytes(estimate.flash_bytes)},
      {"naive, for comparison", FormatBytes(estimate.naive_bytes)},
      {"flash saves",
       absl::StrFormat("%.1f %% of naive", estimate.reduction_ratio * 100)},
      {"message buffers", FormatBytes(estimate.wire_bytes)},
      {"peak, one request", FormatBytes(estimate.peak_per_request_bytes)},
      {absl::StrCat("peak, ", concurrency, " at once"),
       FormatBytes(estimate.peak_bytes)},
      {"largest message", FormatBytes(estimate.required_message_bytes)},
      {"floating-point operations", absl::StrCat(estimate.flops)}};
  if (!flags.offline) {
    rows.emplace_back("fits this server", estimate.fits ? "yes" : "no");
    rows.emplace_back("what stops larger ones", estimate.limiting_factor);
  }
  session.PrintRows(rows);
}

Json EstimateJson(const client::MemoryEstimate& estimate, bool offline) {
  Json json = {{"naive_bytes", estimate.naive_bytes},
               {"flash_bytes", estimate.flash_bytes},
               {"reduction_ratio", estimate.reduction_ratio},
               {"input_bytes", estimate.input_bytes},
               {"output_bytes", estimate.output_bytes},
               {"workspace_bytes", estimate.workspace_bytes},
               {"wire_bytes", estimate.wire_bytes},
               {"peak_per_request_bytes", estimate.peak_per_request_bytes},
               {"peak_bytes", estimate.peak_bytes},
               {"required_message_bytes", estimate.required_message_bytes},
               {"flops", estimate.flops}};
  if (!offline) {
    json["fits"] = estimate.fits;
    json["limiting_factor"] = estimate.limiting_factor;
  }
  return json;
}

// A tensor without elements: nothing of them is sent.
client::ConstTensor Described(client::DataType dtype,
                              const std::vector<int64_t>& shape) {
  return {client::ConstElements(dtype, std::span<const std::byte>()), shape};
}

ExitCode RunEstimate(EstimateFlags& flags, Session& session) {
  client::AttentionOptions& attention = flags.options.attention;
  if (!flags.bias_shape.empty()) {
    attention.bias = Described(flags.bias_dtype, flags.bias_shape);
  }
  if (!flags.mask_shape.empty()) {
    attention.mask = Described(client::DataType::kBool, flags.mask_shape);
  }
  const auto estimate = flags.offline
                            ? EstimateOffline(flags.options)
                            : session.Connect().EstimateMemory(flags.options);
  if (!estimate.ok()) {
    if (!flags.offline) return session.CallError(estimate.status());
    session.screen.PrintError(
        absl::StrCat("attnctl: ", estimate.status().message()));
    return kUsage;
  }
  if (flags.json) {
    session.screen.PrintJson(EstimateJson(*estimate, flags.offline));
  } else {
    PrintTable(*estimate, flags, session);
  }
  return kOk;
}

}  // namespace

void AddEstimateCommand(CLI::App& app, Session& session) {
  CLI::App* command = app.add_subcommand(
      "estimate", "What a problem costs in bytes, before it is run");
  auto flags = std::make_shared<EstimateFlags>();
  client::MemoryEstimateOptions& options = flags->options;
  AddNumberFlag(*command, "--seq-len", options.seq_len, "q_len and kv_len");
  AddNumberFlag(*command, "--q-len", options.q_len, "default --seq-len");
  AddNumberFlag(*command, "--kv-len", options.kv_len, "default --seq-len");
  AddNumberFlag(*command, "--dimensions", options.dimensions, "default 128");
  AddNumberFlag(*command, "--head-dim", options.head_dim,
                "default --dimensions");
  AddNumberFlag(*command, "--v-head-dim", options.v_head_dim,
                "default --head-dim");
  AddNumberFlag(*command, "--batch", options.batch, "default 1");
  AddNumberFlag(*command, "--num-q-heads", options.num_q_heads, "default 1");
  AddNumberFlag(*command, "--num-kv-heads", options.num_kv_heads,
                "default --num-q-heads");
  AddNumberFlag(*command, "--threads", options.threads,
                "default the server's, or this machine's if --offline");
  AddNumberFlag(*command, "--concurrency", options.concurrency,
                "requests that run at once; default 1");
  AddTypeFlag(*command, "--dtype", options.dtype,
              "of query, key and value: f32 (default), f16 or bf16");
  AddTypeFlag(*command, "--output-dtype", options.output_dtype,
              "default --dtype");
  AddTransportFlag(*command, options.transport);
  AddOptionFlags(*command, options.attention);
  AddNumberFlag(*command, "--bias-shape", flags->bias_shape,
                "count a bias of this shape");
  AddTypeFlag(*command, "--bias-dtype", flags->bias_dtype,
              "f32 (default), f16 or bf16");
  AddNumberFlag(*command, "--mask-shape", flags->mask_shape,
                "count a mask of this shape");
  command->add_flag("--return-lse", options.return_lse,
                    "count lse as part of the output");
  command->add_flag("--offline", flags->offline,
                    "compute here, for this machine; asks no server");
  command->add_flag("--json", flags->json, "print JSON");
  command->footer(
      "Examples:\n"
      "  attnctl estimate --seq-len=16384 --num-q-heads=32 --num-kv-heads=8\n"
      "  attnctl estimate --q-len=1 --kv-len=32768 --concurrency=64 "
      "--offline --json\n");
  command->callback(
      [flags, &session] { session.exit_code = RunEstimate(*flags, session); });
}

}  // namespace attnd::attnctl
