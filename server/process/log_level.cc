#include "server/process/log_level.h"

#include "spdlog/spdlog.h"

namespace attnd::server {
namespace {

using Level = spdlog::level::level_enum;

Level g_option = spdlog::level::info;

}  // namespace

void SetLogLevel(const std::string& name) {
  g_option = spdlog::level::from_str(name);
  spdlog::set_level(g_option);
}

void SwitchDebugLog() {
  const bool to_debug = spdlog::get_level() != spdlog::level::debug;
  const Level level = to_debug ? spdlog::level::debug : g_option;
  // The line is written at any --log-level.
  spdlog::set_level(spdlog::level::debug);
  if (g_option == spdlog::level::debug) {
    spdlog::info("SIGUSR1: the log level stays debug, as --log-level says");
  } else if (to_debug) {
    spdlog::info("SIGUSR1: the log level is debug until the next SIGUSR1");
  } else {
    spdlog::info("SIGUSR1: the log level is {} again, as --log-level says",
                 spdlog::level::to_string_view(level));
  }
  spdlog::set_level(level);
}

}  // namespace attnd::server
