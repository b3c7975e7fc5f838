// What planted_race.cc, which the sanitizer sees, and planted_race_grpc.cc,
// which it does not, say to each other: the same split as in server/.
#ifndef ATTND_TESTS_HOUSE_PLANTED_RACE_H_
#define ATTND_TESTS_HOUSE_PLANTED_RACE_H_

namespace attnd::house {

// Runs in a gRPC callback thread, once a call.
void PlantedHandler();

// Makes two calls at once to a server in this process, each of which runs
// PlantedHandler. False where a call failed.
bool CallTwiceAtOnce();

}  // namespace attnd::house

#endif  // ATTND_TESTS_HOUSE_PLANTED_RACE_H_
