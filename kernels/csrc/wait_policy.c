/* Whether OpenMP's threads spin while they wait for work, changed while the program runs.

   GCC's library (libgomp, which torch uses too) decides it once, at its start: threads spin for milliseconds after
   every parallel region. That is fast on a quiet machine. On a busy one each spinning thread keeps a core from the
   thread that all others wait for. The library stops spinning while it has started more threads than there are cores.
   So a team that does nothing but exist makes all threads of the process sleep at once when they have no work, and its
   end makes them spin again. */

#if defined(_OPENMP) && defined(__GNUC__) && !defined(__clang__) && !defined(_WIN32)
#include <omp.h>
#include <pthread.h>
#include <unistd.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static pthread_t holder;
static pid_t held_by; /* the process whose thread holds a team, 0 if none does: a child has no thread of its parent's */
static int there, over;

static void *hold(void *nothing)
{
    int members = 0;
#pragma omp parallel num_threads(omp_get_num_procs() + 1) reduction(+ : members)
    members++;
    pthread_mutex_lock(&lock);
    there = members;
    pthread_cond_broadcast(&changed);
    while (!over)
        pthread_cond_wait(&changed, &lock);
    pthread_mutex_unlock(&lock);
    return nothing; /* the library ends the team with the thread that has begun it */
}

/* Makes threads sleep (passive 1) or spin (0) while they wait. Returns whether they sleep now. Not for several threads
   at once.
   Takes: 0 or 1. Refuses nothing. */
int penstock_wait_policy(int passive)
{
    const pid_t here = getpid();
    if (passive && held_by != here) {
        over = there = 0;
        if (pthread_create(&holder, 0, hold, 0))
            return 0;
        held_by = here;
        pthread_mutex_lock(&lock);
        while (!there)
            pthread_cond_wait(&changed, &lock);
        pthread_mutex_unlock(&lock);
    } else if (!passive && held_by == here) {
        pthread_mutex_lock(&lock);
        over = 1;
        pthread_cond_broadcast(&changed);
        pthread_mutex_unlock(&lock);
        pthread_join(holder, 0);
        held_by = 0;
    }
    return held_by == here && there > omp_get_num_procs();
}

#else

int penstock_wait_policy(int passive)
{
    (void)passive;
    return 0;
}

#endif
