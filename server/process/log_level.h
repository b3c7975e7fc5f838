// Which lines the log of the process has. SIGUSR1 changes that at run time.
#ifndef ATTND_SERVER_PROCESS_LOG_LEVEL_H_
#define ATTND_SERVER_PROCESS_LOG_LEVEL_H_

#include <string>

namespace attnd::server {

// Sets the level of --log-level: debug, info, warning or error. Call it before
// the process has other threads.
void SetLogLevel(const std::string& name);

// Switches from that level to debug, or back, and logs which level is in force.
// Only one thread may call it.
void SwitchDebugLog();

}  // namespace attnd::server

#endif  // ATTND_SERVER_PROCESS_LOG_LEVEL_H_
