/* clocks: for some seconds (default 3) read the monotonic clock, the calendar, and the TSC in turn, while a
   timer interrupts every millisecond; none may go back. Prints how often it read, how often something went
   back, the timer's ticks (those that came together are counted), and the TSC's rate. usage: clocks [seconds] */
#define _GNU_SOURCE
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <x86intrin.h>
static volatile long ticks; static timer_t timer;
static void tick(int s){ ticks+=1+timer_getoverrun(timer); }
static long long at(clockid_t c){ struct timespec t; clock_gettime(c,&t); return t.tv_sec*1000000000ll+t.tv_nsec; }
int main(int c,char**v){ double seconds=c>1?atof(v[1]):3; signal(SIGALRM,tick);
 struct sigevent e={.sigev_notify=SIGEV_SIGNAL,.sigev_signo=SIGALRM};
 struct itimerspec i={{0,1000000},{0,1000000}};
 if(timer_create(CLOCK_MONOTONIC,&e,&timer)){perror("timer_create");return 1;}
 long long start=at(CLOCK_MONOTONIC),end=start+(long long)(seconds*1e9),mono=start,cal=at(CLOCK_REALTIME),reads=0,back=0;
 unsigned long long first=__rdtsc(),tsc=first; timer_settime(timer,0,&i,0);
 while(mono<end){ long long m=at(CLOCK_MONOTONIC),r=at(CLOCK_REALTIME); unsigned long long t=__rdtsc();
  back+=(m<mono)+(r<cal)+(t<tsc); mono=m; cal=r; tsc=t; reads++; }
 struct itimerspec none={{0,0},{0,0}}; timer_settime(timer,0,&none,0);
 printf("clocks: %lld reads, %lld back, %ld ticks, TSC %.0f MHz\n",reads,back,ticks,(tsc-first)*1e3/(mono-start));
 return back!=0; }
