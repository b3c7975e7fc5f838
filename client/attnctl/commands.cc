#include "client/attnctl/commands.h"

#include <map>
#include <string>

namespace attnd::attnctl {

void AddCausalFlag(CLI::App& command, client::Causal& causal) {
  static const std::map<std::string, client::Causal> kNames = {
      {"none", client::Causal::kNone},
      {"top-left", client::Causal::kTopLeft},
      {"bottom-right", client::Causal::kBottomRight}};
  command
      .add_option_function<std::string>(
          "--causal",
          [&causal](const std::string& name) { causal = kNames.at(name); },
          "which keys a query row sees by position: none, top-left (row 0 sees "
          "key 0) or bottom-right (the last row sees the last key)")
      ->check(CLI::IsMember(&kNames))
      ->type_name("RULE");
}

Json StatsJson(const client::ExecutionStats& stats) {
  return {{"isa", stats.isa},
          {"kernel", stats.kernel},
          {"tile_q", stats.tile_q},
          {"tile_kv", stats.tile_kv},
          {"threads", stats.threads},
          {"queue_time_ms", absl::ToDoubleMilliseconds(stats.queue_time)},
          {"compute_time_ms", absl::ToDoubleMilliseconds(stats.compute_time)},
          {"flops", stats.flops},
          {"workspace_bytes", stats.workspace_bytes}};
}

void PrintJson(const Json& json, Session& session) {
  // A server may send text that is not UTF-8; that is no reason to throw.
  session.out << json.dump(2, ' ', false, Json::error_handler_t::replace)
              << "\n";
}

}  // namespace attnd::attnctl
